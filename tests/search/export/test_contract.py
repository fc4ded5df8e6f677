"""One contract for every engine: from whatever document an export is, the plan's pattern is read back."""

import ast
import json
import re
import shlex
import tomllib
from itertools import pairwise

import pytest
import yaml
from random_models import ROOT

from indexcache.commands.export import export_document
from indexcache.pattern import Pattern
from indexcache.search.export.engines import ENGINES
from indexcache.search.export.settings import edited_config, export
from indexcache.search.plan.file import read_plan

PAIRS = [(name, family) for name, engine in ENGINES.items() for family in engine.families]
PATTERN_KEYS = ("index_topk_pattern", "topk_pattern")
# Sites and roles: every layer a site; others between them; all full; all shared but the first. In each of them a
# shared layer stands right behind its full one, as far as some engines can hand a selection.
SHAPES = {
    "every layer": (list(range(8)), 8, "FSFFSFSF"),
    "layers between": ([1, 2, 4, 5, 8], 9, "FSFSF"),
    "all full": ([0, 1, 2, 3], 4, "FFFF"),
    "one full": ([0, 1], 2, "FS"),
}


@pytest.fixture(scope="module")
def searched_plan():
    return read_plan(ROOT / "tests" / "assets" / "plan-v2.json")


def plan_for(plan, family, shape):
    """The plan as if its pattern had come out for a model of this family and shape."""
    sites, layers, roles = SHAPES[shape]
    changes = {"layers": layers, "site_layers": sites, "model_type": family, "nested_config": None}
    spelled = Pattern(roles).over_layers(sites, layers, ())
    result = plan.result.model_copy(update={"pattern": roles, "layer_pattern": spelled})
    return plan.model_copy(update={"model": plan.model.model_copy(update=changes), "result": result})


def as_settings(plan, exported):
    """The settings as data, through JSON and through YAML."""
    through_json = json.loads(json.dumps(exported.settings))
    assert yaml.safe_load(yaml.safe_dump(exported.settings)) == through_json
    return [through_json]


def as_printed(plan, exported):
    """What --json prints."""
    document = json.loads(json.dumps(export_document(plan, exported, None)))
    assert document["pattern"] == exported.pattern
    return [document["settings"]]


def as_pasted(plan, exported):
    """What is pasted, by what it is: JSON, TOML, Python, or a command with JSON in an option or YAML in a file."""
    text = exported.paste
    if "<<'EOF'" in text:
        return [yaml.safe_load(text.split("<<'EOF'\n")[1].split("EOF\n")[0])]
    if text.startswith("{"):
        return [json.loads(text)]
    if text.startswith("["):
        return [tomllib.loads(text)]
    if text.startswith("from "):
        call = ast.parse(text).body[-1].value
        return [{word.arg: ast.literal_eval(word.value) for word in call.keywords}]
    words = shlex.split(text)
    detour = "--model-class-overrides"
    return [json.loads(word) for before, word in pairwise(words) if word.startswith("{") and before != detour]


def as_config(plan, exported):
    """The edited config.json; what stood there about sharing and says otherwise is gone."""
    if exported.config is None:
        pytest.skip(f"{exported.engine} does not take its settings from config.json")
    old = {"model_type": plan.model.model_type, "index_topk_freq": 4, "index_topk_pattern": "F"}
    old |= {"indexer_types": ["full"] * plan.model.layers}
    edited = json.loads(json.dumps(edited_config(old, exported)))
    assert "index_topk_freq" not in edited
    return [edited]


FORMATS = {"settings": as_settings, "printed": as_printed, "pasted": as_pasted, "config": as_config}


def spellings(document):
    """Every pattern in a document, wherever it stands, as letters."""
    found = []
    for name, value in document.items():
        if isinstance(value, dict):
            found += spellings(value)
        elif name in PATTERN_KEYS:
            found.append(value)
        elif name == "indexer_types":
            found.append("".join({"full": "F", "shared": "S"}[word] for word in value))
    return found


@pytest.mark.reliability("R24")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("engine", "family"), PAIRS)
def test_the_plans_pattern_is_read_back(searched_plan, engine, family, form):
    for shape in SHAPES:
        plan = plan_for(searched_plan, family, shape)
        exported = export(plan, engine)
        sites = plan.model.site_layers
        for document in FORMATS[form](plan, exported):
            letters = spellings(document)
            assert letters, f"{shape}: no pattern in it"
            for spelled in letters:
                assert re.fullmatch("[FS]+", spelled)
                over_sites = ENGINES[engine].families[family].letters == "sites" and len(spelled) == len(sites)
                layers = Pattern(spelled).over_layers(sites, plan.model.layers, ()) if over_sites else spelled
                assert layers == plan.result.layer_pattern, shape
