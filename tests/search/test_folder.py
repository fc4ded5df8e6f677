"""A run's folder: complete, and nothing lost when another run is written over it."""

import shutil

import pytest

from indexcache.calibrate.frozen import thaw
from indexcache.errors import OutputError
from indexcache.search.folder import check_writable, save_run, write_report
from indexcache.search.plan import cut, read_plan


@pytest.fixture
def folder(searched, tmp_path):
    return shutil.copytree(searched, tmp_path / "run")


def test_a_run_leaves_plan_tokens_and_report(searched):
    names = {path.name for path in searched.iterdir()}
    assert names == {"plan.json", "windows.safetensors", "report.md", "report.html", "curve.svg"}


def test_the_tokens_beside_the_plan_are_its_own(searched):
    plan = read_plan(searched / "plan.json")
    windows = thaw(searched / plan.tokens.file, plan.tokens.sha256)
    assert windows.calibration.shape == (plan.tokens.windows, plan.tokens.window)


def test_the_same_run_again_replaces_itself(folder):
    plan = read_plan(folder / "plan.json")
    later = plan.model_copy(update={"timing": plan.timing.model_copy(update={"seconds": 1.0})})
    assert save_run(folder, later, b"tokens") is None
    assert read_plan(folder / "plan.json").timing.seconds == 1.0


def test_another_run_moves_the_old_one_aside_with_its_tokens(folder):
    plan = read_plan(folder / "plan.json")
    tokens = (folder / "windows.safetensors").read_bytes()
    moved = save_run(folder, cut(plan, keep=0.25), b"other tokens")
    assert read_plan(moved / "plan.json") == plan
    assert (moved / "windows.safetensors").read_bytes() == tokens
    assert read_plan(folder / "plan.json").result.kept == 2


def test_an_unreadable_plan_is_moved_aside_too(folder):
    plan = read_plan(folder / "plan.json")
    (folder / "plan.json").write_text("torn")
    moved = save_run(folder, plan, b"tokens")
    assert (moved / "plan.json").read_text() == "torn"


def test_a_folder_that_cannot_be_written_is_found_out_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_cut_plans_move_with_the_tokens_they_need(folder):
    plan = read_plan(folder / "plan.json")
    (folder / "plan-2of8.json").write_text(cut(plan, keep=0.25).as_json())
    (folder / "notes.txt").write_text("mine")
    moved = save_run(folder, cut(plan, keep=0.25), b"other tokens")
    assert (moved / "plan-2of8.json").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_runs_moved_aside_do_not_overwrite_each_other(folder):
    plan = read_plan(folder / "plan.json")
    moved = []
    for content in ("torn", "torn again"):
        (folder / "plan.json").write_text(content)
        moved.append(save_run(folder, plan, b"tokens"))
    assert [(each / "plan.json").read_text() for each in moved] == ["torn", "torn again"]


def test_a_cut_plans_report_leaves_the_plans_own_alone(folder):
    plan = read_plan(folder / "plan.json")
    before = (folder / "report.html").read_text()
    written = write_report(folder, cut(plan, keep=0.25), "plan-2of8")
    assert {path.name for path in written} == {
        "plan-2of8-report.md",
        "plan-2of8-report.html",
        "plan-2of8-curve.svg",
    }
    assert "(plan-2of8-curve.svg)" in (folder / "plan-2of8-report.md").read_text()
    assert (folder / "report.html").read_text() == before
