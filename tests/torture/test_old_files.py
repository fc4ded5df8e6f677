"""Plans and journals of every schema version open."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from random_models import ROOT

from indexcache.calibrate.frozen import thaw
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights, identify_weights
from indexcache.errors import PlanError
from indexcache.search.export.settings import export
from indexcache.search.plan import schema as plan
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.older import old_order
from indexcache.search.run import journal

pytestmark = pytest.mark.reliability("R21")
ASSETS = ROOT / "tests" / "assets"


def test_there_is_one_of_each_version():
    names = {path.name for path in ASSETS.iterdir()}
    assert {f"plan-v{version}.json" for version in range(1, plan.SCHEMA + 1)} <= names
    assert {f"journal-v{version}.jsonl" for version in range(1, journal.SCHEMA + 1)} <= names


def says(opened, written):
    """Whether all of ``written`` stands in ``opened`` too, which may have fields of later versions."""
    if isinstance(written, dict):
        return all(says(opened[name], value) for name, value in written.items())
    if isinstance(written, list):
        return len(opened) == len(written) and all(map(says, opened, written))
    return opened == written


@pytest.mark.parametrize("version", range(1, plan.SCHEMA))
def test_a_plan_of_an_older_version_opens_and_says_the_same(version):
    """Patterns, losses and tokens are those of the file; what its version did not have is said to be unknown."""
    written = json.loads((ASSETS / f"plan-v{version}.json").read_text())
    opened = json.loads(read_plan(ASSETS / f"plan-v{version}.json").as_json())
    assert opened["schema_version"] == plan.SCHEMA
    for name in ("search", "result", "heldout", "tokens", "cost"):
        assert says(opened[name], written[name]), name
    assert (opened["complete"], opened["search"]["objective"]) == (True, "loss")
    for name in ("model", "run"):
        assert opened[name] | written[name] == opened[name]
    if version == 1:
        assert (opened["model"]["weights_hash"], opened["model"]["code_sha256"]) == ("files", None)
        assert opened["run"]["threads"] is None


def test_a_plan_of_version_1_is_the_same_search_as_that_of_version_2():
    """Both assets are of one search, so that whatever a plan is good for comes out alike."""
    old, new = (read_plan(ASSETS / f"plan-v{version}.json") for version in (1, 2))
    assert (old.search, old.result, old.tokens) == (new.search, new.result, new.tokens)
    assert cut(old, 0.25).result == cut(new, 0.25).result
    assert export(old, "vllm").paste == export(new, "vllm").paste
    assert old_order(old, old.model.site_layers) == old_order(new, new.model.site_layers)


@pytest.fixture
def old_run(tmp_path):
    """A run's folder as version 1 left it."""
    for name, target in {"plan-v1.json": "plan.json", "windows.safetensors": "windows.safetensors"}.items():
        shutil.copy(ASSETS / name, tmp_path / target)
    return tmp_path


def test_a_plan_of_version_1_is_cut_rendered_and_written_anew(run_cli, old_run):
    code, out, err = run_cli("cut", old_run, "--keep", 0.25)
    assert code == 0, err
    again = read_plan(Path(out.strip()))
    assert (again.schema_version, again.result.kept, again.model.weights_hash) == (plan.SCHEMA, 2, "files")
    code, out, err = run_cli("report", old_run, "--out", old_run / "report")
    assert (code, len(out.splitlines())) == (0, 4), err
    assert "None" not in err, "the next command names a plan that is not there"


def test_a_plan_of_version_1_knows_its_weights_by_their_files(tmp_path, checkpoints):
    """As version 1 wrote it down: a hash over each file's name and the hash of its content, in order."""
    folder = shutil.copytree(checkpoints["eight"], tmp_path / "eight")
    content = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    written = hashlib.sha256(f"model.safetensors:{content}\n".encode()).hexdigest()
    assert identify_weights(find_weights(open_checkpoint(str(folder))), "files") == ("files", written)


def test_a_plan_of_version_1_for_another_model_is_refused_by_field(run_cli, old_run, checkpoints):
    code, out, err = run_cli("eval", old_run, "--model", checkpoints["glm_moe_dsa"], "-q")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "layers is 6, the plan has 8" in err


@pytest.mark.parametrize(
    ("section", "field", "value", "says"),
    [
        (None, "schema_version", 0, "schema version 0"),
        (None, "schema_version", True, "schema version True"),
        (None, "checksum", "0" * 16, "field checksum"),
        ("model", "weights_hash", "whole", "field model.weights_hash (not of version 1)"),
        ("run", "threads", 1, "field run.threads (not of version 1)"),
        (None, "model", [], "field model"),
        ("result", "kept", 5, "kept"),
    ],
)
def test_a_plan_of_version_1_with_what_that_version_never_wrote_is_refused(tmp_path, section, field, value, says):
    document = json.loads((ASSETS / "plan-v1.json").read_text())
    (document[section] if section else document)[field] = value
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match=re.escape(says)):
        read_plan(tmp_path / "plan.json")


def test_a_plan_of_this_version_opens_with_its_tokens():
    found = read_plan(ASSETS / f"plan-v{plan.SCHEMA}.json")
    assert found.result.kept == 4
    assert len(found.search.steps) == 7
    assert len(thaw(ASSETS / found.tokens.file, found.tokens.sha256).calibration) == found.tokens.windows


def test_a_journal_of_this_version_opens():
    found = journal.read_journal(ASSETS / f"journal-v{journal.SCHEMA}.jsonl")
    written = read_plan(ASSETS / f"plan-v{plan.SCHEMA}.json")
    assert (found.torn, found.identity["tokens"]) == (0, written.tokens.sha256)
    assert found.identity["weights"] == written.model.weights_sha256
    baseline = found.content.losses["calibration", False]["F" * 8]
    loss = sum(window.loss for window in baseline.values()) / len(baseline) / written.tokens.labels
    assert loss == pytest.approx(written.search.baseline_loss, abs=1e-12)


def test_a_search_over_an_older_runs_journal_names_what_changed_since(run_cli, checkpoints, text_file, tmp_path):
    shutil.copy(ASSETS / f"journal-v{journal.SCHEMA}.jsonl", tmp_path / "journal.jsonl")
    before = (tmp_path / "journal.jsonl").read_bytes()
    arguments = ["--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--window", 48, "--windows", 6]
    code, out, err = run_cli("search", *arguments, "--heldout", 4, "--keep", 0.5, "--out", tmp_path, "-q")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "config is " in err
    assert Path(tmp_path / "journal.jsonl").read_bytes() == before
