"""When a command tries its backends: a search once a run, eval where something else computes than before."""

import json
import shutil

import pytest
from sealed_plans import sealed

from indexcache.errors import ModelError


@pytest.fixture
def tried(monkeypatch):
    """Lengths of the windows on which backends were held against the model's own code."""
    lengths = []
    monkeypatch.setattr("indexcache.commands.job.measure.check_backends", lambda *args: lengths.append(args[-1]))
    return lengths


@pytest.fixture
def plan(searched, tmp_path):
    """Makes a copy of the run whose plan says it ran otherwise."""

    def make(**run):
        folder = shutil.copytree(searched, tmp_path / "run")
        document = json.loads((folder / "plan.json").read_text())
        document["run"].update({"versions": document["run"]["versions"] | run.pop("versions", {}), **run})
        (folder / "plan.json").write_text(sealed(document))
        return folder / "plan.json"

    return make


class TestEval:
    def test_not_where_the_same_computes(self, run_cli, plan, tried):
        assert run_cli("eval", plan(versions={"datasets": "1.0"}), "-q")[0] == 0
        assert tried == []

    @pytest.mark.parametrize(
        "run", [{"versions": {"transformers": "5.0.0"}}, {"device": "cuda: NVIDIA H100"}], ids=str
    )
    def test_where_another_release_or_device_does(self, run_cli, plan, tried, run):
        assert run_cli("eval", plan(**run), "-q")[0] == 0
        assert tried == [48]

    def test_not_the_models_own_code(self, run_cli, plan, tried):
        assert run_cli("eval", plan(indexer="stock", device="cuda: NVIDIA H100"), "-q")[0] == 0
        assert tried == []

    def test_where_longer_windows_run_on_other_code(self, run_cli, plan, tried):
        path = plan(indexer="stock")
        assert run_cli("eval", path, "--window", 47, "--windows", 2, "-q")[0] == 0
        assert tried == []
        assert run_cli("eval", path, "--window", 60, "--windows", 2, "-q")[0] == 0
        assert tried == [60]

    def test_a_refusal_of_longer_windows_advises_shorter_ones(self, run_cli, plan, monkeypatch):
        def refuse(*args):
            raise ModelError("layer 0", hint="--indexer stock runs the model's own code")

        monkeypatch.setattr("indexcache.commands.job.measure.check_backends", refuse)
        code, out, err = run_cli("eval", plan(indexer="stock"), "--window", 60, "--windows", 2, "-q")
        assert (code, out, "--indexer" in err) == (2, "", False)
        assert "lower --window" in err

    def test_a_refusal_advises_what_eval_can_do(self, run_cli, plan, monkeypatch):
        def refuse(*args):
            raise ModelError("layer 0", hint="--indexer stock runs the model's own code")

        monkeypatch.setattr("indexcache.commands.job.measure.check_backends", refuse)
        code, out, err = run_cli("eval", plan(versions={"transformers": "5.0.0"}), "-q")
        assert (code, out) == (2, "")
        assert "ran with transformers 5.0.0" in err
        assert "--indexer" not in err


def test_a_search_that_goes_on_does_not_check_again(run_cli, checkpoints, text_file, tmp_path, tried, monkeypatch):
    checks = []
    monkeypatch.setattr("indexcache.commands.search.self_check", lambda *_: checks.append("self"))

    def search(keep):
        options = ["--keep", keep, "--window", 48, "--windows", 4, "--heldout", 2, "--selfcheck"]
        given = ["--model", checkpoints["eight"], "--dataset", text_file, "--out", tmp_path, "-q"]
        return run_cli("search", *given, *options)[0]

    assert search(0.9) == 0
    assert (checks, tried) == (["self"], [48])
    assert search(0.5) == 0
    assert (checks, tried) == (["self"], [48])
