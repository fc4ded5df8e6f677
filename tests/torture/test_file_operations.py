"""Runs killed between every two file operations, or with one of them failing, lose and mix up nothing."""

import errno
import functools
import json
import os
import shutil
import signal

import pytest
from children import one_line, run_child, spread
from system_calls import SystemCalls

from indexcache.errors import OutputError
from indexcache.search.plan.file import read_plan
from indexcache.search.run.journal import read_journal
from indexcache.system.files import check_writable, write_atomically

PLAN, TOKENS = "plan.json", "windows.safetensors"
BEFORE = {
    "nothing": None,
    "a plan of another budget": {"keep": 0.67},
    "a run with other tokens": {"keep": 0.67},
}
MORE = {"a run with other tokens": {"resume": "never"}}


@pytest.fixture(params=BEFORE)
def scene(request, paper, tmp_path, finished):
    """A folder with what stood there before, the next run's arguments, and the old and the new plan and tokens."""
    template, more = tmp_path / "template", MORE.get(request.param, {})
    template.mkdir()
    if BEFORE[request.param]:
        assert paper(template, **BEFORE[request.param])[0] == 0
    if more:  # the same losses, but a stranger's tokens
        content = (template / TOKENS).read_bytes()
        (template / TOKENS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    old = {name: (template / name).read_bytes() for name in (PLAN, TOKENS) if (template / name).exists()}
    return template, more, old, {name: (finished / name).read_bytes() for name in (PLAN, TOKENS)}


def chosen(path, new):
    """Whether ``path`` is the new plan as it is written first, before baselines and checks are measured."""
    if path.name != PLAN:
        return False
    plan, finished = read_plan(path), json.loads(new[PLAN])
    return not plan.complete and plan.result.pattern == finished["result"]["pattern"]


def whole(out, old, new):
    """What of a run's files is neither old nor new, in ``out`` and in what was moved aside; None if nothing."""
    for path in [*out.rglob(PLAN), *out.rglob(TOKENS)]:
        if path.read_bytes() not in (old.get(path.name), new[path.name]) and not chosen(path, new):
            return f"{path.name} is neither the old nor the new one"
    for path in out.rglob("journal.jsonl"):
        read_journal(path)
    return None


def ended_well(out, old, new, ended_code, err):
    """What the last run's end shows to be wrong; None if nothing."""
    if ended_code or "Traceback" in err:
        return f"exit {ended_code}: {err[-300:]}"
    if any((out / name).read_bytes() != content for name, content in new.items()):
        return "another plan, or other tokens"
    if list(out.rglob("*.part")):
        return "an unfinished file was left"
    kept = [path.parent for path in out.rglob(PLAN) if path.read_bytes() == old.get(PLAN)]
    if old and not any((folder / TOKENS).read_bytes() == old[TOKENS] for folder in kept):
        return "the old plan, or its tokens, are gone"
    return None


def calls_of(paper, template, more, tmp_path):
    """The file operations of a run that nothing befalls."""
    out = shutil.copytree(template, tmp_path / "counted")
    with pytest.MonkeyPatch.context() as patch:
        calls = SystemCalls().install(patch.setattr)
        assert paper(out, **more)[0] == 0
    return calls.made


@pytest.mark.reliability("R3")
def test_killed_between_every_two(scene, paper, search_on_paper, cases, full, tmp_path):
    template, more, old, new = scene
    made = calls_of(paper, template, more, tmp_path)
    places = [(at, "kill") for at in range(len(made))]
    places += [(at, "torn") for at, name in enumerate(made) if name == "write"]
    for number in spread(len(places), len(places) if full else 8):
        at, how = places[number]
        out = shutil.copytree(template, tmp_path / f"{at}{how}")
        job = functools.partial(search_on_paper, out, **more)
        killed = run_child(job, tmp_path, SystemCalls(at, how).install_for_good)
        wrong = whole(out, old, new) or (None if killed.code == -9 else f"not killed: {killed}")
        code, err = paper(out, **more)
        wrong = wrong or ended_well(out, old, new, code, err)
        cases.check(wrong is None, f"{how} at call {at}, {made[at]}: {wrong}")
        shutil.rmtree(out)


@pytest.mark.reliability("R6")
def test_one_of_them_fails(scene, paper, cases, full, tmp_path):
    template, more, old, new = scene
    made = calls_of(paper, template, more, tmp_path)
    ways = (errno.EIO, "short") if old else (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, "short")
    places = [(at, how) for at, name in enumerate(made) for how in ways if how != "short" or name == "write"]
    for number in spread(len(places), len(places) if full else 24):
        at, how = places[number]
        out = shutil.copytree(template, tmp_path / f"{at}{how}")
        with pytest.MonkeyPatch.context() as patch:
            SystemCalls(at, how).install(patch.setattr)
            code, err = paper(out, **more)
        wrong = whole(out, old, new)
        if code == 0:  # what failed was not needed, or was made good
            wrong = wrong or ended_well(out, old, new, code, err)
        elif how == "short" or code != 2 or not one_line(err):
            wrong = wrong or f"exit {code}: {err[-300:]}"
        elif made[at] != "unlink" and list(out.rglob("*.part")):
            wrong = wrong or "an unfinished file was left"
        code, err = paper(out, **more)
        wrong = wrong or ended_well(out, old, new, code, err)
        cases.check(wrong is None, f"{how} at call {at}, {made[at]}: {wrong}")
        shutil.rmtree(out)


@pytest.mark.reliability("R6")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch, code):
    sync = os.fsync

    def of_files_only(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_atomically(tmp_path / "plan.json", "new")
    assert (tmp_path / "plan.json").read_text() == "new"


@pytest.mark.reliability("R6")
def test_the_first_look_at_a_folder_finds_out_too(cases, tmp_path):
    for code in (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS):
        with pytest.MonkeyPatch.context() as patch:
            calls = SystemCalls().install(patch.setattr)
            check_writable(tmp_path / "a" / "b")
        for at in range(len(calls.made)):
            with pytest.MonkeyPatch.context() as patch:
                SystemCalls(at, code).install(patch.setattr)
                try:
                    check_writable(tmp_path / "a" / "b")
                    said = None
                except OutputError as error:
                    said = str(error)
            shutil.rmtree(tmp_path / "a", ignore_errors=True)
            # A probe's folders may stay, and one above them may be written to and not read.
            needless = calls.made[at] == "rmdir" or (code == errno.EACCES and at in (1, 2, 4, 5))
            is_named = said is None if needless else "cannot be written" in str(said)
            cases.check(is_named, f"{calls.made[at]}, call {at}: {errno.errorcode[code]}: {said}")


@pytest.mark.reliability("R3")
def test_what_is_renamed_was_synced_and_folders_are_too(paper, cases, monkeypatch, tmp_path):
    """What a power loss could take: a process that is killed loses nothing that it wrote, a computer does."""
    paper(tmp_path / "first")
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "mkdir", "close")}
    names, unsynced, unsynced_folders = {}, set(), set()

    def opened(path, *more, **named):
        handle = real["open"](path, *more, **named)
        names[handle] = os.fspath(path)
        return handle

    def written(handle, data):
        unsynced.add(names.get(handle))
        return real["write"](handle, data)

    def synced(handle):
        unsynced.discard(names[handle])
        unsynced_folders.discard(names[handle])

    def replaced(old, new):
        cases.check(os.fspath(old) not in unsynced, f"{old} is renamed before it is on the disk")
        unsynced_folders.add(os.fspath(new.parent))
        real["replace"](old, new)

    def made(path, *more):
        real["mkdir"](path, *more)
        unsynced_folders.add(os.path.dirname(path))  # noqa: PTH120

    ours = {"open": opened, "write": written, "fsync": synced, "replace": replaced, "mkdir": made}
    for name, call in ours.items():
        monkeypatch.setattr(os, name, call)
    assert paper(tmp_path / "a" / "run")[0] == 0
    assert paper(tmp_path / "first", keep=0.67)[0] == 0
    assert paper(tmp_path / "first", keep=0.67, resume="never")[0] == 0
    left = {name for name in unsynced if name and not name.endswith(".lock")}
    cases.check(not left, f"never brought to the disk: {left}")
    cases.check(not unsynced_folders, f"folders never brought to the disk: {unsynced_folders}")


@pytest.mark.reliability("R3")
def test_beginning_anew_twice_keeps_both_old_runs(paper, search_on_paper, stop_at_the_plan, tmp_path):
    out = tmp_path / "run"
    assert paper(out)[0] == 0
    first = (out / "journal.jsonl").read_bytes()
    killed = run_child(functools.partial(search_on_paper, out, resume="never"), tmp_path, stop_at_the_plan)
    assert killed.code == -9
    assert (out / PLAN).exists()
    assert not (out / "journal.jsonl").exists()
    assert paper(out, keep=0.67)[0] == 0
    assert paper(out, resume="never")[0] == 0
    assert first in [path.read_bytes() for path in out.glob("replaced-*/journal.jsonl")]
    assert len(list(out.rglob("journal.jsonl"))) == 3


@pytest.fixture
def stop_at_the_plan():
    """Kills the process before it moves a plan aside."""

    def before():
        replace = os.replace

        def replaced(old, new):
            if old.name == PLAN:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(old, new)

        os.replace = replaced

    return before


@pytest.mark.reliability("R3")
def test_files_of_no_search_are_kept(paper, finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    mine = ("report.md", "report.html", "curve.svg", "timing.json", TOKENS)
    for name in mine:
        (out / name).write_text("mine")
    assert paper(out)[0] == 0
    (aside,) = out.glob("replaced-*")
    assert {path.name: path.read_text() for path in aside.iterdir()} == dict.fromkeys(mine, "mine")
    assert (out / PLAN).read_bytes() == (finished / PLAN).read_bytes()


def test_what_a_killed_process_was_writing_is_cleared_away(paper, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".plan.json.999999999.part", f".report.md.{os.getpid()}.part"):
        (tmp_path / "run" / name).write_text("torn")
    (tmp_path / "run" / f".plan.json.{os.getppid()}.part").write_text("of a process that runs")
    assert paper(tmp_path / "run")[0] == 0
    assert [path.name for path in (tmp_path / "run").glob(".*.part")] == [f".plan.json.{os.getppid()}.part"]
