"""Recipes: the shipped ones load, and a wrong one is refused by field with the nearest name."""

import re

import pytest

from indexcache.errors import SettingError
from indexcache.recipes.schema import Recipe, read_recipe, with_options


def test_the_tiny_recipe_loads_by_name_and_by_path():
    by_name = read_recipe("tiny")
    assert by_name.model == "recipes/tiny"
    assert by_name.keep == 0.25


@pytest.mark.reliability("R11")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("windwos: 4", "unknown field 'windwos'"),
        ("window: 1", "window"),
        ("window: many", "window"),
        ("windows: 0", "windows"),
        ("dtype: int4", "dtype"),
        ("schema_version: 9", "schema_version"),
        ("trust_remote_code: true", "sets trust_remote_code, which no recipe can"),
        ("allow_pickle: true", "sets allow_pickle, which no recipe can"),
        ("", "holds no settings"),
        ("- a", "holds no settings"),
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.system [true]", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=says) as caught:
        read_recipe(str(path))
    assert "recipe.yaml" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_an_unknown_field_suggests_the_nearest(tmp_path):
    (tmp_path / "recipe.yaml").write_text("windwos: 4")
    with pytest.raises(SettingError) as caught:
        read_recipe(str(tmp_path / "recipe.yaml"))
    assert caught.value.hint == "did you mean 'windows'?"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 1}, "--window is 1"),
        ({"standard_errors": -1.0}, "--standard-errors is -1.0"),
        ({"pin": [0, -4]}, "--pin is -4"),
        ({"dataset": "a\x1b[2J"}, "--dataset: "),
    ],
)
def test_a_wrong_option_is_named_as_it_is_given(options, says):
    with pytest.raises(SettingError, match=re.escape(says)):
        with_options(read_recipe("tiny"), options)


def test_a_missing_recipe_names_the_shipped_ones():
    with pytest.raises(SettingError, match="nonesuch") as caught:
        read_recipe("nonesuch")
    assert "tiny" in caught.value.hint


def test_every_field_says_what_it_is():
    assert all(field.description for field in Recipe.model_fields.values())
