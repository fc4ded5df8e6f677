"""The JSON Schema in docs: it is what the program reads, and plans fit it."""

import json
import sys

import pytest
from random_models import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import plan_schema

PUBLISHED = json.loads(plan_schema.DOCUMENT.read_text("utf-8"))


def test_is_current():
    assert plan_schema.schema() == PUBLISHED, "run python docs/plan_schema.py --write"


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="make install brings it")
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)
    return jsonschema.Draft202012Validator(PUBLISHED)


def test_plans_fit_it(validator, searched, probed):
    paths = [ROOT / "tests" / "assets" / "plan-v3.json", searched / "plan.json", probed / "plan.json"]
    for path in paths:
        assert not [error.message for error in validator.iter_errors(json.loads(path.read_text("utf-8")))], path


def test_what_is_no_plan_does_not(validator, searched):
    plan = json.loads((searched / "plan.json").read_text("utf-8"))
    for broken in (
        plan | {"schema_version": 2},
        plan | {"surprise": 1},
        {name: value for name, value in plan.items() if name != "checksum"},
        plan | {"result": plan["result"] | {"kept": -1}},
    ):
        assert not validator.is_valid(broken)
