"""Windows added until a plan is decided: what search says at the end, and what eval takes as in sample."""

import json
import re

import pytest
from command_lines import lines, search_arguments

from indexcache.search.plan.file import read_plan
from indexcache.search.report.certainty import not_decided
from indexcache.search.report.prose import calibration_windows


@pytest.fixture
def auto_run(run_cli, paper, checkpoints, text_file, tmp_path):
    """A search that added windows: the file of its plan, and what it said on stderr."""
    code, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path / "run", windows="auto"))
    assert code == 0, err
    return tmp_path / "run" / "plan.json", err


def test_the_end_is_said_on_stderr_and_in_the_report(auto_run):
    path, err = auto_run
    plan, report = read_plan(path), (path.parent / "report.md").read_text()
    assert plan.search.decided is (not plan.search.ties)
    said = "not decided: layers" in err.replace("\n", " ")
    assert said is ("Not decided: layers" in report) is (plan.search.decided is False)
    assert bool(not_decided(plan)) is (plan.search.decided is False)
    assert f"{calibration_windows(plan)} calibration and" in err


def test_steps_on_stderr_say_of_which_look_they_are(auto_run):
    path, err = auto_run
    looks = [
        (int(number), int(windows)) for number, windows in re.findall(r"look (\d+), (\d+) windows: step 1/", err)
    ]
    assert [number for number, _ in looks] == list(range(1, len(looks) + 1))
    assert looks[0] == (1, 8)
    assert looks[-1][1] == read_plan(path).search.windows
    assert err.count("step 1/") == len(looks)


def test_eval_in_sample_takes_the_windows_that_chose(auto_run, run_cli):
    path, _ = auto_run
    plan = read_plan(path)
    assert plan.search.windows < plan.tokens.windows, "all windows were used, so nothing is shown"
    code, out, err = run_cli("eval", path, "--on", "calibration", "--json", "-q")
    again = json.loads(out)
    assert code == 0, err
    assert again["windows"] == plan.search.windows
    assert again["baseline_loss"] == plan.search.baseline_loss
    assert again["plan"]["delta"] == pytest.approx(plan.result.delta, abs=1e-9)


def test_the_cost_is_that_of_the_windows_used(auto_run):
    plan = read_plan(auto_run[0])
    assert plan.cost.algorithm_1_window_evaluations == (5 + 4 + 3) * plan.search.windows


def test_dynamic_programming_is_refused_before_weights(run_cli, checkpoints, text_file, tmp_path):
    arguments = search_arguments(checkpoints, text_file, tmp_path, windows="auto", strategy="dp")
    code, out, err = run_cli(*arguments, "-q")
    assert (code, out, len(lines(err))) == (2, "", 1), err
    assert "--strategy dp has no steps" in err
    assert "give a number of windows" in err
