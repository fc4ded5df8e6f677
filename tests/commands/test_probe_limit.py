"""search --max-probe-delta: a search ends with 1 where its plan, which is written, costs too much on probes."""

import json
import shutil

import pytest
from command_lines import lines


@pytest.fixture
def finished(probed, probe_search, tmp_path, monkeypatch):
    """The command of a search that a journal answers without its model, and the folder of its run."""
    monkeypatch.setattr("indexcache.commands.search.load", lambda *_: pytest.fail("the model was loaded"))
    folder = shutil.copytree(probed, tmp_path / "run")
    (folder / "plan.json").unlink()
    return [*probe_search, "--out", folder, "-q"], folder / "plan.json"


def test_a_plan_above_it_is_written_and_does_not_pass(run_cli, finished, probed):
    command, path = finished
    code, out, err = run_cli(*command, "--max-probe-delta", "0", "--json")
    plan = json.loads(path.read_text())
    assert (code, json.loads(out)) == (1, plan)
    assert plan["complete"]
    assert plan == json.loads((probed / "plan.json").read_text())
    assert len(lines(err)) == 1
    assert "the plan's loss on probes increases by" in err
    assert "--max-probe-delta 0" in err


def test_a_plan_within_it_passes(run_cli, finished):
    command, path = finished
    code, out, _ = run_cli(*command, "--max-probe-delta", "100", "--gate", "estimate")
    assert (code, out.strip()) == (0, str(path))


REFUSED = {
    "one document": (["--heldout", 1], "all held-out probe windows are of one document"),
    "no probes": (["--probes", 0], "with --probes 0 no probes are measured"),
    "no text for them": (["--heldout", 0], "with --heldout 0 no probes are measured"),
    "no room for them": (["--window", 100], "100 tokens are too short for"),
    "a limit that none can be": (["--max-probe-delta", "-1"], "nats per answer token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_where_no_probes_will_be_measured(run_cli, probe_search, tmp_path, monkeypatch, case):
    changes, says = REFUSED[case]
    monkeypatch.setattr("indexcache.commands.search.load", lambda *_: pytest.fail("the model was loaded"))
    arguments = ["--max-probe-delta", "0.1", *changes, "--out", tmp_path / "run", "-q"]
    code, out, err = run_cli(*probe_search, *arguments)
    assert (code, out, len(lines(err))) == (2, "", 1), err
    assert says in err


def test_without_it_windows_without_probes_are_no_error(run_cli, probe_search, tmp_path):
    arguments = ["--window", 100, "--out", tmp_path / "run", "--dry-run"]
    code, _, err = run_cli(*probe_search, *arguments)
    assert (code, "no probes: windows of 100 tokens are too short" in err) == (0, True)
    assert "--probes 0" in err
