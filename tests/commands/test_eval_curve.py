"""eval --curve: every budget on held-out windows, and the loss by position, kept beside the plan and reported."""

import json
import shutil

import pytest
from command_lines import lines

from indexcache.search.plan.cut import cut, measured_patterns
from indexcache.search.plan.file import read_plan
from indexcache.search.report.checks import read_checks


@pytest.fixture(scope="module")
def measured(searched, tmp_path_factory):
    """A finished run of which the whole curve is measured, and what eval printed."""
    from indexcache.cli import main

    folder = shutil.copytree(searched, tmp_path_factory.mktemp("curve") / "run")
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(folder), "--curve", "-q"])
    assert not stop.value.code
    return folder


def test_every_budget_is_measured_as_eval_measures_its_cut(measured, run_cli):
    plan, curve = read_plan(measured), read_checks(measured / "evaluation.json").curve
    budgets = {found.kept: found for found in curve.losses.searched}
    assert budgets.keys() == measured_patterns(plan).keys() - {8}
    assert budgets[4].delta == pytest.approx(plan.heldout.plan.delta, abs=1e-6)
    assert [found.pattern for found in curve.losses.dp] == [found.pattern for found in plan.search.dp]
    path = run_cli("cut", measured, "--keep", "0.75")[1].strip()
    out = run_cli("eval", path, "--json", "-q")[1]
    assert budgets[6].pattern == cut(plan, keep=0.75).result.pattern
    assert budgets[6].delta == pytest.approx(json.loads(out)["plan"]["delta"], abs=1e-6)


def test_stretches_of_the_window_add_up_to_the_whole(measured):
    """Where no stretch is, no pattern differs: the increases, each times its labels, are the whole increase."""
    plan, curve = read_plan(measured), read_checks(measured / "evaluation.json").curve
    labels = [part.last - part.first + 1 for part in curve.positions]
    assert (len(labels), sum(labels)) == (4, plan.tokens.informative_positions)
    for name in ("plan", "uniform"):
        increases = [getattr(part.losses, name).delta for part in curve.positions]
        together = sum(increase * count for increase, count in zip(increases, labels, strict=True))
        whole = getattr(plan.heldout, name).delta * plan.tokens.labels
        assert together == pytest.approx(whole, abs=1e-4), f"the stretches of {name} do not add up"


def test_it_stands_in_the_report(measured):
    text = (measured / "report.md").read_text()
    for words in ("### At every budget", "### By position in the window"):
        assert words in text
    assert "searched, held out" in (measured / "curve.svg").read_text()


@pytest.mark.parametrize("other", [["--on", "calibration"], ["--window", "60"], ["--dataset", "x.txt"]])
def test_a_curve_on_other_windows_is_refused(searched, run_cli, other):
    code, out, err = run_cli("eval", searched, "--curve", *other)
    assert (code, out, len(lines(err))) == (2, "", 1)
    assert "--curve is of the plan's own held-out windows" in err
