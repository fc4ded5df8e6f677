"""Poor terminals, locales, homes, caches, pipes and disks: it works, or says so in one line."""

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from sealed_plans import sealed

from indexcache.cli import main

NOBODY = 65534


@dataclass
class Done:
    """How a program ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


def run_forked(folder, *arguments, out="file", err="file", encoding="utf-8", **changes):
    """Runs the command line in a copy of this process, which has the libraries loaded, with streams as given.

    Args:
        folder: where files for what is printed can be.
        arguments: of the command line.
        out: "file", "closed", "full" or "left", for a reader that is gone; or a file's number.
        err: likewise.
        encoding: what the streams take.
        changes: of the environment.
    """
    files = {1: folder / "stdout", 2: folder / "stderr"}
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            os.environ.update(changes)
            for number, way in ((1, out), (2, err)):
                _put_in_place(number, way, files[number])
            sys.stdout = None if out == "closed" else _stream(1, encoding)
            sys.stderr = None if err == "closed" else _stream(2, encoding)
            main([str(word) for word in arguments])
        except SystemExit as stop:
            code = stop.code or 0
            try:
                sys.stdout.flush()
            except OSError:
                code = 120  # as the interpreter does
            os._exit(code)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    printed = [path.read_bytes() if path.exists() else b"" for path in files.values()]
    for path in files.values():
        path.unlink(missing_ok=True)
    return Done(os.waitstatus_to_exitcode(status), *printed)


def _put_in_place(number, way, path):
    if way == "closed":
        os.close(number)
        return
    if way == "left":
        reader, writer = os.pipe()
        os.close(reader)
    elif way == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        writer = way if isinstance(way, int) else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(writer, number)


def _stream(number, encoding):
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding=encoding, line_buffering=number == 2)


def run_shell(command, **changes):
    """A shell command in which $INDEXCACHE stands for the program."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | changes
    environment |= {"INDEXCACHE": f"{sys.executable} -m indexcache.cli"}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=environment, check=False, timeout=100)


@pytest.fixture
def clean(cases):
    """Counts a case: the exit code as expected, and no traceback nor a second line of error."""

    def clean(what, done, *codes):
        err = done.stderr.decode("utf-8", "replace")
        fine = done.returncode in codes and "Traceback" not in err and err.count("error") <= 1
        cases.check(fine, f"{what}: {done.returncode} {err[:500]!r}")

    return clean


@pytest.fixture(scope="module")
def plan(searched):
    return searched / "plan.json"


@pytest.mark.reliability("R22")
def test_streams_that_are_closed_full_or_left(plan, clean, cases, tmp_path):
    good, bad = ("export", plan, "--to", "vllm"), ("export", plan, "--to", "tgi")
    table, text = ("inspect", "recipes/tiny"), ("search", "--help")
    clean("stdout closed", run_forked(tmp_path, *good, out="closed"), 0)
    done = run_forked(tmp_path, *bad, err="closed")
    clean("stderr closed, an error", done, 2)
    cases.check(done.stdout == b"", f"an error went to stdout, as stderr was closed: {done.stdout!r}")
    clean("both closed", run_forked(tmp_path, *good, out="closed", err="closed"), 0)
    clean("both closed, an error", run_forked(tmp_path, *bad, out="closed", err="closed"), 2)
    for what, job in {"settings": good, "a table": table, "help": text}.items():
        clean(f"a reader of {what} that left", run_forked(tmp_path, *job, out="left"), 141)
        done = run_forked(tmp_path, *job, out="full")
        clean(f"a full disk behind {what}", done, 2)
        cases.check(b"cannot be printed: No space left" in done.stderr, f"{what}: {done.stderr!r}")
    for way in ("left", "full"):
        clean(f"errors to a stream that is {way}", run_forked(tmp_path, *bad, err=way), 2)
        clean(f"errors as JSON, {way}", run_forked(tmp_path, *bad, "--json", out=way), 2)
        clean(f"both {way}", run_forked(tmp_path, *bad, "--json", out=way, err=way), 2)
        done = run_forked(tmp_path, "eval", plan, err=way)
        clean(f"progress to a stream that is {way}", done, 0)
        cases.check(b"this plan" in done.stdout, f"{way}: {done.stdout!r}")


@pytest.mark.reliability("R22")
def test_terminals_without_unicode_or_width(plan, clean, cases, tmp_path):
    document = json.loads(plan.read_text())
    held_out = document["heldout"]["plan"]
    delta = f"{held_out['delta']:+.4f} ({held_out['low']:.4f} to {held_out['high']:.4f})"
    for columns in ("20", "1", "0", "x"):
        done = run_forked(tmp_path, "eval", plan, "-q", encoding="ascii", COLUMNS=columns)
        clean(f"no Unicode, {columns} columns", done, 0)
        cases.check(delta.encode() in done.stdout, f"{done.stdout!r}")
        done = run_forked(tmp_path, "search", "--help", encoding="ascii", COLUMNS=columns)
        clean(f"help in {columns} columns", done, 0)


@pytest.mark.reliability("R22", "R19")
def test_json_stays_json_where_unicode_is_lost(searched, cases, tmp_path):
    folder = shutil.copytree(searched, tmp_path / "run")
    document = json.loads((folder / "plan.json").read_text())
    document["tokens"]["dataset"] = "bücher/文本/🜚"
    (folder / "plan.json").write_text(sealed(document))
    done = run_forked(tmp_path, "cut", folder, "--keep", 0.5, "--json", encoding="ascii")
    assert done.returncode == 0, done.stderr
    cases.check(json.loads(done.stdout)["tokens"]["dataset"] == "bücher/文本/🜚", f"{done.stdout[:2000]!r}")


@pytest.mark.reliability("R22")
def test_a_terminal_of_20_columns(plan, cases, tmp_path):
    leader, follower = pty.openpty()
    done = run_forked(tmp_path, "eval", plan, out=follower, err=follower, COLUMNS="20", LINES="5", TERM="xterm")
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 1 << 16):
            shown += piece
    except OSError:  # all that was written has been read
        pass
    os.close(leader)
    cases.check(done.returncode == 0 and b"Traceback" not in shown, f"{done.returncode} {shown[-800:]!r}")
    delta = json.loads(plan.read_text())["heldout"]["plan"]["delta"]
    cases.check(f"{delta:+.4f}".encode() in shown, f"no figures in {shown[-800:]!r}")


@pytest.mark.reliability("R22")
def test_the_same_in_real_shells(plan, clean, cases, full, checkpoints, text_file, tmp_path):
    if not full:
        pytest.skip("a start of Python takes seconds: in the full run")
    good, bad = f"$INDEXCACHE export {plan} --to vllm", f"$INDEXCACHE export {plan} --to tgi"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    clean("stdout closed", run_shell(f"{good} >&-"), 0)
    clean("all closed", run_shell(f"{good} <&- >&- 2>&-"), 0)
    done = run_shell(f"{bad} 2>&-")
    cases.check((done.returncode, done.stdout) == (2, b""), f"{done}")
    clean("a full disk", run_shell(f"{good} > /dev/full"), 2)
    clean("a full disk behind an error", run_shell(f"{bad} --json > /dev/full 2> /dev/full"), 2)
    clean("a reader that leaves", run_shell(f"set -o pipefail; {good} | true"), 141)
    clean("one that leaves a table", run_shell("set -o pipefail; $INDEXCACHE inspect recipes/tiny | true"), 141)
    clean("one that reads a line", run_shell("set -o pipefail; $INDEXCACHE search --help | head -1"), 0, 141)
    clean("one of errors that leaves", run_shell(f"{bad} 2>&1 > /dev/null | true"), 0)
    done = run_shell(f"$INDEXCACHE eval {plan} -q", **plain, COLUMNS="20")
    clean("no Unicode", done, 0)
    cases.check(b"increase (95 %)" in done.stdout and done.stdout.isascii(), f"{done.stdout!r}")
    clean("a name that the locale lacks", run_shell(f"$INDEXCACHE inspect {tmp_path}/é", **plain), 2)
    nowhere = dict.fromkeys(("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"), "/proc/nowhere")
    arguments = (
        f"--model {checkpoints['eight']} --dataset {text_file} --keep 1 --window 48 --windows 2 --heldout 1"
    )
    command = f"env -u HOME $INDEXCACHE search {arguments} -q --out"
    clean("no HOME, no cache", run_shell(f"{command} {tmp_path}/a", **nowhere), 0, 2)
    clean("no HOME", run_shell(f"{command} {tmp_path}/b"), 0)


@contextmanager
def without_rights():
    """As a user who may write nowhere here: permissions say nothing to root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def read_only(tmp_path_factory, monkeypatch):
    """A folder that can be looked into and not written to."""
    folder = tmp_path_factory.mktemp("readonly")
    for place in (folder, *folder.parents):
        if place.owner() and str(place).startswith("/tmp/") and os.geteuid() == 0:
            place.chmod(0o755)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def opened_up(path):
    """``path`` and what is in it, readable for all."""
    for place in (path, *path.rglob("*"), *path.parents):
        if str(place).startswith("/tmp/") and os.geteuid() == 0:
            place.chmod(place.stat().st_mode | (0o555 if place.is_dir() else 0o444))
    return path


@pytest.mark.reliability("R22", "R6")
def test_folders_that_cannot_be_written(
    run_cli, checkpoints, text_file, searched, read_only, cases, monkeypatch, tmp_path
):
    model, text, run = opened_up(checkpoints["eight"]), opened_up(text_file), opened_up(searched)
    monkeypatch.chdir(tmp_path)
    arguments = ["search", "--model", model, "--dataset", text, "--keep", 0.5, "--window", 48, "--windows", 2]
    jobs = {
        "the working folder": [*arguments, "--heldout", 1, "-q"],
        "a run's folder": [*arguments, "--heldout", 1, "-q", "--out", read_only / "deep" / "run"],
        "a cut": ["cut", run, "--keep", 0.5, "--out", read_only / "plan.json"],
        "a report": ["report", run, "--out", read_only],
        "a config": ["export", run, "--to", "vllm", "--write", read_only / "new", "-q"],
        "a checkpoint": ["export", run, "--to", "vllm", "--write", read_only / "n", "--strip-weights", "-q"],
    }
    for job in jobs.values():
        # What is imported on the way may be out of reach for another user.
        run_cli(*(str(word).replace(str(read_only), str(tmp_path / "first")) for word in job))
    monkeypatch.chdir(read_only)
    for what, job in jobs.items():
        with without_rights():
            code, out, err = run_cli(*job)
        fine = (code, out, len(err.splitlines())) == (2, "", 1) and "Permission denied" in err
        cases.check(fine, f"{what}: {code} {err[:300]!r}")
    cases.check(not list(read_only.iterdir()), "something was left there")
    with without_rights():
        code, out, err = run_cli("eval", run, "-q")
    cases.check(code == 0, f"eval needs to write: {err[:300]!r}")


@pytest.mark.reliability("R22")
def test_offline(run_cli, checkpoints, text_file, cases, tmp_path):
    for arguments in (
        ["inspect", "acme/model"],
        ["search", "--model", "acme/model", "--dataset", text_file, "--keep", 0.5],
        ["estimate", "--model", "acme/model", "--keep", 0.5, "--no-time"],
        ["search", "--model", checkpoints["eight"], "--dataset", "acme/text", "--keep", 0.5, "--window", 48],
    ):
        code, out, err = run_cli(*arguments)
        fine = (code, out) == (2, "") and "acme/" in err and err.count("error:") == 1
        cases.check(fine and "Traceback" not in err, f"{arguments[:3]}: {code} {err[:300]!r}")
