"""The comparison tells an engine that runs the plan from one that runs another pattern."""

import json

import numpy as np
import pytest
import run_conformance
from conformance.environments import ENGINES
from conformance.verdict import compared, shifted

PLAN = "FSFSSF"
WINDOWS, TOKENS, WORDS = 2, 100, 7


@pytest.fixture
def references():
    """Made-up logits under three patterns, which differ in every fourth row."""
    random = np.random.default_rng(0)
    plan = random.normal(size=(WINDOWS, TOKENS, WORDS)).astype(np.float32)
    others = {name: plan.copy() for name in ("all full", "off by one")}
    for logits in others.values():
        logits[:, ::4] += random.normal(size=logits[:, ::4].shape)
    return {"plan": plan, **others}


def test_the_plan_passes(references):
    verdict = compared(PLAN, PLAN, references["plan"], references)
    assert verdict.fault is None
    assert verdict.rows == WINDOWS * TOKENS
    assert verdict.rows_off == {"plan": 0, "all full": 50, "off by one": 50}
    assert verdict.largest == 0


def test_what_a_softmax_takes_away_and_a_padded_vocabulary_do_not_count(references):
    padded = np.concatenate([references["plan"] + 3, np.full((WINDOWS, TOKENS, 2), -50.0)], -1)
    assert compared(PLAN, PLAN, padded, references).fault is None


@pytest.mark.parametrize("name", ["all full", "off by one"])
def test_another_pattern_fails(name, references):
    fault = compared(PLAN, PLAN, references[name], references).fault
    assert fault == "50 of 200 rows are off under the plan, which should be fewer than 2"


def test_roles_that_are_not_the_plans_fail(references):
    fault = compared(PLAN, "FFFFFF", references["plan"], references).fault
    assert fault == f"its layers are FFFFFF, and the plan's {PLAN}"


@pytest.mark.parametrize(("rows", "passes"), [(1, True), (2, False)])
def test_fewer_than_one_row_in_a_hundred_may_be_off(rows, passes, references):
    logits = references["plan"].copy()
    logits[0, 1 : 1 + rows, 0] += 1
    assert (compared(PLAN, PLAN, logits, references).fault is None) is passes


def test_windows_that_do_not_tell_the_patterns_apart_prove_nothing(references):
    same = {**references, "off by one": references["plan"]}
    assert "tell the plan from off by one" in compared(PLAN, PLAN, references["plan"], same).fault


def test_figures_that_are_none_are_off(references):
    logits = references["plan"].copy()
    logits[0, :5] = np.nan
    assert compared(PLAN, PLAN, logits, references).rows_off["plan"] == 5


def test_the_shifted_pattern_is_the_plan_moved_by_a_layer():
    assert shifted(PLAN) == "FFSFSS"
    assert len(shifted(PLAN)) == len(PLAN)


PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
place = Path(sys.argv[1]).parent
task = json.loads(Path(sys.argv[1]).read_text())
if "{crash}":
    sys.exit("the engine broke")
np.save(place / "logits.npy", np.load("{logits}"))
roles = task["paste"].split()[0]
(place / "answer.json").write_text(json.dumps({{"version": "1.0", "roles": roles, "python": "3"}}))
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch, references):
    """An engine whose program gives the logits and pastes of the test's choice."""
    import dataclasses
    import sys

    def make(name, crash="", roles=PLAN):
        class Program(type(ENGINES["mlx-vlm"])):
            place = tmp_path
            program = tmp_path / "program.py"

            def python(self):
                return sys.executable

        fields = {field.name: getattr(ENGINES["mlx-vlm"], field.name) for field in dataclasses.fields(Program)}
        np.save(tmp_path / "given.npy", references[name])
        text = PROGRAM.format(crash=crash, logits=tmp_path / "given.npy")
        (tmp_path / "program.py").write_text(text, "utf-8")
        monkeypatch.setattr(run_conformance, "exported", lambda *_: {"paste": roles, "folder": None})
        return Program(**{**fields, "version": "1.0"})

    return make


def test_a_program_s_answer_is_held_against_transformers(made_up, references):
    windows = np.zeros((WINDOWS, TOKENS), np.int64)
    result = run_conformance.result(made_up("plan"), PLAN, None, windows, references)
    assert result["fault"] is None
    assert json.loads(json.dumps(result))["rows_off"]["all full"] == 50
    assert (
        "off under the plan"
        in run_conformance.result(made_up("all full"), PLAN, None, windows, references)["fault"]
    )
    wrong = run_conformance.result(made_up("plan", roles="FFFFFF"), PLAN, None, windows, references)
    assert wrong["fault"].startswith("its layers are FFFFFF")


def test_a_program_that_breaks_down_says_how(made_up, references):
    with pytest.raises(RuntimeError, match="the engine broke"):
        run_conformance.result(made_up("plan", crash="yes"), PLAN, None, np.zeros((1, 4), np.int64), references)
