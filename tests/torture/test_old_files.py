"""Plans and journals of every schema version open, or are refused by name."""

import shutil
from pathlib import Path

import pytest
from random_models import ROOT

from indexcache.calibrate.frozen import thaw
from indexcache.errors import PlanError
from indexcache.search.plan import schema as plan
from indexcache.search.run import journal

pytestmark = pytest.mark.reliability("R21")
ASSETS = ROOT / "tests" / "assets"


def test_there_is_one_of_each_version():
    names = {path.name for path in ASSETS.iterdir()}
    assert {f"plan-v{version}.json" for version in range(1, plan.SCHEMA + 1)} <= names
    assert {f"journal-v{version}.jsonl" for version in range(1, journal.SCHEMA + 1)} <= names


@pytest.mark.parametrize("version", range(1, plan.SCHEMA))
def test_older_plans_are_refused_by_their_version(version):
    with pytest.raises(
        PlanError, match=rf"plan-v{version}\.json' has plan schema version {version}, this program"
    ):
        plan.read_plan(ASSETS / f"plan-v{version}.json")


def test_a_plan_of_this_version_opens_with_its_tokens():
    found = plan.read_plan(ASSETS / f"plan-v{plan.SCHEMA}.json")
    assert found.result.kept == 4
    assert len(found.search.steps) == 7
    assert len(thaw(ASSETS / found.tokens.file, found.tokens.sha256).calibration) == found.tokens.windows


def test_a_journal_of_this_version_opens():
    found = journal.read_journal(ASSETS / f"journal-v{journal.SCHEMA}.jsonl")
    written = plan.read_plan(ASSETS / f"plan-v{plan.SCHEMA}.json")
    assert found.torn == 0
    assert found.identity["weights"] == written.model.weights_sha256
    baseline = found.content.losses["calibration", False]["F" * 8]
    loss = sum(baseline.values()) / len(baseline) / written.tokens.labels
    assert loss == pytest.approx(written.search.baseline_loss, abs=1e-12)


def test_a_search_over_an_older_runs_journal_names_what_changed_since(run_cli, checkpoints, text_file, tmp_path):
    shutil.copy(ASSETS / f"journal-v{journal.SCHEMA}.jsonl", tmp_path / "journal.jsonl")
    before = (tmp_path / "journal.jsonl").read_bytes()
    arguments = ["--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--window", 48, "--windows", 6]
    code, out, err = run_cli("search", *arguments, "--heldout", 4, "--keep", 0.5, "--out", tmp_path, "-q")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "config is " in err
    assert Path(tmp_path / "journal.jsonl").read_bytes() == before
