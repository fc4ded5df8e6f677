"""Recipes: the shipped ones load, and a wrong one is refused by field with the nearest name."""

import json
import re

import pytest
import transformers
from random_models import ROOT

from indexcache.errors import SettingError
from indexcache.recipes.schema import FIELDS, option_of, read_recipe, with_options


def test_the_tiny_recipe_loads_by_name_and_by_path():
    by_name = read_recipe("tiny")
    assert by_name.model == "recipes/tiny"
    assert by_name.keep == 0.25


# The config that transformers gives each family by default, which is the layout of the model named; its sites.
SHIPPED = {
    "deepseek-v3.2": ("DeepseekV32Config", 61),
    "glm-5": ("GlmMoeDsaConfig", 78),
    "glm-5.1": ("GlmMoeDsaConfig", 78),
    "deepseek-v4-flash": ("DeepseekV4Config", 20),
}


class TestShippedRecipes:
    def test_none_is_left_out_here(self):
        assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == {*SHIPPED, "30b", "tiny"}

    @pytest.mark.parametrize("name", SHIPPED)
    def test_it_fits_its_family(self, name, run_cli, tmp_path):
        config, sites = SHIPPED[name]
        getattr(transformers, config)(dtype="bfloat16").save_pretrained(tmp_path)
        code, out, err = run_cli("estimate", "--recipe", name, "--model", tmp_path, "--no-time", "--json")
        assert code == 0, err
        assert json.loads(out)["sites"] == sites
        assert "warning" not in err, "windows that tell patterns apart, within the model's positions"

    def test_the_30b_recipe_fits_the_config_it_was_timed_on(self, run_cli):
        model = ROOT / "tests" / "benchmarks" / "glm_moe_dsa_30b"
        code, out, err = run_cli("estimate", "--recipe", "30b", "--model", model, "--no-time", "--json")
        assert (code, json.loads(out)["sites"]) == (0, 47), err
        assert "warning" not in err

    @pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
    def test_it_says_what_was_run_and_names_what_matters(self, path):
        lines = path.read_text("utf-8").splitlines()
        comment = " ".join(line for line in lines if line.startswith("#"))
        assert lines[0].startswith("# ")
        assert "Run" in comment
        assert path.stem == "tiny" or "Not run" in comment
        named = {line.partition(":")[0] for line in lines if not line.startswith("#")}
        assert {"schema_version", "dataset", "window", "windows", "heldout", "dtype", "keep"} <= named
        assert path.stem == "tiny" or "pin" in named


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [("gate", "wat", ""), ("confidence", 2.0, "e.g. 0.95"), ("windows", 0, "e.g. 32"), ("dtype", "int4", "")],
)
def test_a_hint_is_a_value_and_no_paragraph(field, value, hint):
    with pytest.raises(SettingError) as raised:
        with_options(None, {field: value})
    assert raised.value.hint == hint
    assert field != "gate" or "it should be 'interval' or 'estimate'" in str(raised.value)


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
    assert all(option_of(name).help for name in FIELDS if name != "schema_version")
