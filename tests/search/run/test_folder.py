"""A run's folder: complete, and nothing lost when another run is written over it."""

import shutil

import pytest

from indexcache.calibrate.frozen import thaw
from indexcache.errors import OutputError
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.report.timing import Timing, read_timing, timing_file
from indexcache.search.run.folder import begin_anew, remove_leftovers, save_run, write_report
from indexcache.system.files import check_writable

WHEN = "2026-11-23T12:00:00Z"
TIMING = Timing(started=WHEN, finished=WHEN, seconds=1.0, processes=1, sittings=1)


@pytest.fixture
def folder(searched, tmp_path):
    return shutil.copytree(searched, tmp_path / "run")


def test_a_run_leaves_plan_tokens_and_report(searched):
    names = {path.name for path in searched.iterdir()}
    assert names - {"evaluation.json"} == {  # which eval leaves there, in another test
        "plan.json",
        "timing.json",
        "sizes.json",
        "journal.jsonl",
        ".lock",
        "windows.safetensors",
        "report.md",
        "report.html",
        "curve.svg",
    }


def test_the_tokens_beside_the_plan_are_its_own(searched):
    plan = read_plan(searched / "plan.json")
    windows = thaw(searched / plan.tokens.file, plan.tokens.sha256)
    assert windows.calibration.shape == (plan.tokens.windows, plan.tokens.window)


def test_the_same_run_again_replaces_itself(folder):
    plan = read_plan(folder / "plan.json")
    assert save_run(folder, plan, b"tokens", TIMING) is None
    assert read_timing(timing_file(folder / "plan.json")) == TIMING


def test_another_run_moves_the_old_one_aside_with_its_tokens(folder):
    plan = read_plan(folder / "plan.json")
    tokens = (folder / "windows.safetensors").read_bytes()
    moved = save_run(folder, cut(plan, keep=0.25), b"other tokens", TIMING)
    assert read_plan(moved / "plan.json") == plan
    assert (moved / "windows.safetensors").read_bytes() == tokens
    assert read_plan(folder / "plan.json").result.kept == 2


def test_an_unreadable_plan_is_moved_aside_too(folder):
    plan = read_plan(folder / "plan.json")
    (folder / "plan.json").write_text("torn")
    moved = save_run(folder, plan, b"tokens", TIMING)
    assert (moved / "plan.json").read_text() == "torn"


def test_a_folder_that_cannot_be_written_is_found_out_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_journal_stays_with_another_budget_and_goes_with_a_new_beginning(folder):
    plan = read_plan(folder / "plan.json")
    journal = (folder / "journal.jsonl").read_bytes()
    save_run(folder, cut(plan, keep=0.25), b"other tokens", TIMING)
    assert (folder / "journal.jsonl").read_bytes() == journal
    aside = begin_anew(folder)
    assert (aside / "journal.jsonl").read_bytes() == journal
    assert read_plan(aside).result.kept == 2
    assert [path.name for path in folder.iterdir() if path.is_file()] == [".lock"]
    assert begin_anew(folder) is None


def test_cut_plans_move_with_the_tokens_they_need(folder):
    plan = read_plan(folder / "plan.json")
    (folder / "plan-2of8.json").write_text(cut(plan, keep=0.25).as_json())
    (folder / "notes.txt").write_text("mine")
    (folder / "plan-notes.txt").write_text("mine too")
    moved = save_run(folder, cut(plan, keep=0.25), b"other tokens", TIMING)
    assert (moved / "plan-2of8.json").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "plan-notes.txt").read_text() == "mine too"


def test_runs_moved_aside_do_not_overwrite_each_other(folder):
    plan = read_plan(folder / "plan.json")
    moved = []
    for content in ("torn", "torn"):
        (folder / "plan.json").write_text(content)
        moved.append(save_run(folder, plan, b"tokens", TIMING))
    assert moved[0] != moved[1]
    assert [(folder / "plan.json").read_text() for folder in moved] == ["torn", "torn"]


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


# What a search, bench, eval and cuts leave.
RUN_FILES = (
    "plan.json",
    "windows.safetensors",
    "timing.json",
    "journal.jsonl",
    "report.md",
    "report.html",
    "curve.svg",
    "overlap.svg",
    "prefill.svg",
    "bench.json",
    "bench-decode.json",
    "sizes.json",
    "evaluation.json",
    "plan-2of8.json",
    "plan-4of8-2of8.json",
    "plan-2of8-report.md",
    "plan-2of8-report.html",
    "plan-2of8-curve.svg",
    "plan-2of8-overlap.svg",
    "plan-2of8-prefill.svg",
    "plan-2of8-bench.json",
    "plan-2of8-bench-decode.json",
    "plan-2of8-evaluation.json",
)


def neighbours(name):
    """Names that are nearly ``name`` and somebody's own."""
    stem, _, kind = name.rpartition(".")
    yield from (f"{stem}.py", f"{stem}.sh", f"{stem}.txt", f"{stem}.{kind}.bak", f"{stem}.{kind}~", f"my-{name}")
    yield from (f"{stem}_2.{kind}", f"{stem}_old.{kind}", f"{stem}-mine.{kind}", f"x{name}", f".{name}.swp", stem)
    yield from (name.upper(), f".{stem}.py.999999.part")


OTHER_FILES = [
    *sorted({neighbour for name in RUN_FILES for neighbour in neighbours(name)} - set(RUN_FILES)),
    "plan.md",
    "plan-notes.md",
    "plan-half.json",
    "plan-b.html",
    "plan-2of8.md",
    "plan-2of8-notes.md",
    "plan-XofY.json",
    "report.pdf",
    "bench.csv",
    ".notes.999999.part",
    "eval.json",
]


@pytest.mark.parametrize("replace", ["a new beginning", "another plan"])
def test_only_what_runs_write_is_moved_aside(folder, replace):
    plan = read_plan(folder / "plan.json")
    for name in RUN_FILES:
        if name != "plan.json":
            (folder / name).write_text("ours")
    for name in OTHER_FILES:
        (folder / name).write_text(f"mine: {name}")
    if replace == "a new beginning":
        aside, stays = begin_anew(folder), set()
    else:
        aside, stays = save_run(folder, cut(plan, keep=0.25), b"other tokens", TIMING), {"journal.jsonl"}
    assert {path.name for path in aside.iterdir()} == set(RUN_FILES) - stays
    assert {name: (folder / name).read_text() for name in OTHER_FILES} == {
        name: f"mine: {name}" for name in OTHER_FILES
    }


def test_only_unfinished_files_of_runs_are_removed(folder):
    unfinished = [".plan.json.999999.part", ".journal.jsonl.999999.part", ".probe.999999.part"]
    unfinished += [".plan-2of8-report.md.999999.part"]
    others = [".film.999999.part", ".plan.md.999999.part", ".report.py.999999.part", "plan.json.999999.part"]
    for name in (*unfinished, *others):
        (folder / name).write_text("")
    remove_leftovers(folder)
    assert {path.name for path in folder.iterdir() if path.name.endswith(".part")} == set(others)
