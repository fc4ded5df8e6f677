"""search --strategy distilled: its plan, its journal, what runs the plan and what does not."""

import json
import shutil

import pytest
from command_lines import lines
from random_models import EMBEDDED

import indexcache
from indexcache.dsa.distil import candidates
from indexcache.errors import PlanError
from indexcache.search.plan.file import read_plan

LAYERS, WINDOW = 6, 112


def arguments(model, out, *more):
    named = ["search", "--model", model, "--dataset", EMBEDDED / "calibration.jsonl", "--keep", "1/3"]
    sizes = ["--window", WINDOW, "--windows", 4, "--heldout", 3, "--probes", 0]
    return [*named, *sizes, "--out", out, "-q", "--strategy", "distilled", *more]


@pytest.fixture(scope="session")
def jointly(made_once, trimmed):
    """The folder of a plan searched with distilled indexers: two of six stay."""

    def make(out):
        from indexcache.cli import main

        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments(trimmed, out)])
        assert not stop.value.code

    return made_once("searched_with_students", make)


def test_the_plan_says_what_its_losses_hold_for(jointly):
    plan = read_plan(jointly / "plan.json")
    students = plan.search.students
    assert plan.search.strategy == "distilled"
    assert plan.lacks_indexers
    # The first step needs one for each of 5 candidates, and a removal makes at most two new segments.
    assert LAYERS - 1 < students.count <= 3 * LAYERS
    assert (students.steps, students.windows) == (50, 32)
    assert "`indexcache distill`" in (jointly / "report.md").read_text()


@pytest.mark.torture
def test_a_run_that_goes_on_ends_in_the_same_bytes(run_cli, trimmed, jointly, tmp_path, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    journal = (jointly / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (out / "journal.jsonl").write_bytes(b"".join(journal[: len(journal) // 2]))
    made, train = [], candidates.train

    def counted(model, stored, segment, *rest):
        made.append(segment)
        return train(model, stored, segment, *rest)

    monkeypatch.setattr(candidates, "train", counted)
    code, _, err = run_cli(*arguments(trimmed, out))
    assert code == 0, err
    assert (out / "plan.json").read_bytes() == (jointly / "plan.json").read_bytes()
    count = read_plan(out / "plan.json").search.students.count
    assert 0 < len(made) < count, "only what is still to be measured needs students"


def test_a_journal_of_losses_without_students_is_refused(run_cli, trimmed, jointly, tmp_path):
    out = shutil.copytree(jointly, tmp_path / "run")
    code, _, err = run_cli(*arguments(trimmed, out), "--strategy", "fast")
    assert code == 2
    assert lines(err)[-1].startswith("error: ")
    assert "students is absent" in err


@pytest.mark.parametrize(
    "command",
    [
        ["eval"],
        ["apply"],
        ["export", "--to", "vllm", "--engine-version", "0.31.0"],
    ],
    ids=lambda command: command[0],
)
def test_what_would_run_other_indexers_is_refused(run_cli, jointly, command):
    code, out, err = run_cli(command[0], jointly / "plan.json", *command[1:])
    assert (code, out, len(lines(err))) == (2, "", 1)
    assert "indexcache distill" in err


def test_python_refuses_it_too(jointly, trimmed):
    with pytest.raises(PlanError, match="distilled indexers"):
        indexcache.load(trimmed, jointly)


def test_its_distilled_plan_is_a_plan_like_any(run_cli, jointly, tmp_path):
    out = tmp_path / "model"
    code, _, err = run_cli("distill", jointly, "--out", out, "--steps", "20", "--rows", "32", "--lr", "0.01", "-q")
    assert code == 0, err
    plan = read_plan(out / "plan.json")
    assert plan.pattern == read_plan(jointly / "plan.json").pattern
    assert not plan.lacks_indexers
    code, stdout, err = run_cli("eval", out, "--json", "-q")
    assert code == 0, err
    assert json.loads(stdout)["plan"]["loss"] == pytest.approx(plan.heldout.plan.loss, abs=1e-6)


def test_estimate_counts_the_students(run_cli, trimmed, jointly, tmp_path):
    code, stdout, err = run_cli(*arguments(trimmed, tmp_path / "run"), "--dry-run", "--json")
    assert code == 0, err
    document = json.loads(stdout)
    expected = read_plan(jointly / "plan.json").search.students.count
    assert document["steps_a_student"] == 50
    assert document["students"] == pytest.approx(expected, rel=0.4)


def test_the_flag_is_the_strategy_and_wins_over_a_variable(run_cli, trimmed, monkeypatch):
    estimate = ["estimate", "--model", trimmed, "--keep", "1/3", "--window", WINDOW, "--no-time", "--json"]
    monkeypatch.setenv("INDEXCACHE_ESTIMATE_STRATEGY", "exact")
    code, stdout, err = run_cli(*estimate, "--distilled")
    assert (code, json.loads(stdout)["students"] > 0) == (0, True), err
    code, stdout, err = run_cli(*estimate, "--distilled", "--strategy", "exact")
    assert (code, "both --distilled and --strategy were given" in err) == (2, True), err
    monkeypatch.delenv("INDEXCACHE_ESTIMATE_STRATEGY")
    monkeypatch.setenv("INDEXCACHE_ESTIMATE_DISTILLED", "1")
    code, stdout, err = run_cli(*estimate, "--strategy", "exact")
    assert (code, "students" in json.loads(stdout)) == (0, False), err


def test_families_that_cannot_be_distilled_are_refused_before_loading(run_cli, checkpoints, text_file, tmp_path):
    search = ["search", "--model", checkpoints["deepseek_v4"], "--dataset", text_file, "--keep", "0.5"]
    code, _, err = run_cli(*search, "--strategy", "distilled", "--window", "64", "--out", tmp_path / "run", "-q")
    assert (code, len(lines(err))) == (2, 1)
    assert "deepseek_v4" in err


@pytest.mark.torture
def test_streamed_weights_give_the_same_search(run_cli, trimmed, jointly, tmp_path):
    code, _, err = run_cli(*arguments(trimmed, tmp_path / "run", "--max-memory", "5MB"))
    assert code == 0, err
    streamed, before = read_plan(tmp_path / "run" / "plan.json"), read_plan(jointly / "plan.json")
    assert (streamed.search, streamed.heldout) == (before.search, before.heldout)
