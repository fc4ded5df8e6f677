"""Poor terminals, locales, homes, caches, pipes and disks: it works, or says so in one line."""

import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

NOBODY = 65534


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
def test_streams_that_are_closed_full_or_left(plan, clean, cases, full):
    export = f"$INDEXCACHE export {plan} --to vllm"
    clean("stdout closed", run_shell(f"{export} >&-"), 0)
    done = run_shell(f"$INDEXCACHE export {plan} --to none 2>&-")
    clean("stderr closed, an error", done, 2)
    cases.check(done.stdout == b"", f"an error went to stdout, as stderr was closed: {done.stdout!r}")
    done = run_shell(f"set -o pipefail; {export} > /dev/full")
    clean("a full disk behind stdout", done, 2)
    cases.check(b"cannot be printed: No space left" in done.stderr, f"{done.stderr!r}")
    done = run_shell("set -o pipefail; $INDEXCACHE inspect recipes/tiny | true")
    clean("a reader that leaves before a table", done, 141)
    if not full:
        return
    clean("both closed", run_shell(f"{export} >&- 2>&-"), 0)
    clean("all closed", run_shell(f"{export} <&- >&- 2>&-"), 0)
    clean("a reader that leaves", run_shell(f"set -o pipefail; {export} | true"), 141)
    clean("a reader of one line", run_shell("set -o pipefail; $INDEXCACHE search --help | head -1"), 0, 141)
    clean(
        "a reader of errors that leaves",
        run_shell(f"$INDEXCACHE export {plan} --to none 2>&1 >/dev/null | true"),
        0,
    )
    done = run_shell(f"$INDEXCACHE export {plan} --to none --json > /dev/full")
    clean("a full disk behind an error as JSON", done, 2)
    clean("a full disk behind stderr", run_shell(f"$INDEXCACHE export {plan} --to none 2> /dev/full"), 2)
    clean("a full disk behind help", run_shell("$INDEXCACHE --help > /dev/full"), 2)
    clean("a full disk behind a table", run_shell("$INDEXCACHE inspect recipes/tiny > /dev/full"), 2)


@pytest.mark.reliability("R22")
def test_terminals_without_unicode_or_width(plan, clean, cases, full):
    document = json.loads(plan.read_text())
    delta = f"{document['heldout']['plan']['delta']:+.4f} +/- {document['heldout']['plan']['standard_error']:.4f}"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_shell(f"$INDEXCACHE eval {plan} -q", **plain, COLUMNS="20")
    clean("no Unicode, 20 columns", done, 0)
    cases.check(delta.encode() in done.stdout and done.stdout.isascii(), f"{done.stdout!r}")
    if not full:
        return
    done = run_shell(f"$INDEXCACHE eval {plan} -q", PYTHONIOENCODING="ascii")
    cases.check(delta.encode() in done.stdout, f"{done.stdout!r}")
    for columns in ("1", "20", "0", "x"):
        clean(f"help in {columns} columns", run_shell("$INDEXCACHE search --help", **plain, COLUMNS=columns), 0)
    done = run_shell(f"$INDEXCACHE cut {plan} --keep 0.5 --json --out $(mktemp -d)/é.json", **plain)
    clean("a name that the locale cannot spell", done, 0, 2)


@pytest.mark.reliability("R22")
def test_json_stays_json_where_unicode_is_lost(searched, cases, tmp_path):
    folder = shutil.copytree(searched, tmp_path / "run")
    document = json.loads((folder / "plan.json").read_text())
    document["tokens"]["dataset"] = "bücher/文本/🜚"
    (folder / "plan.json").write_text(json.dumps(document))
    done = run_shell(f"$INDEXCACHE cut {folder} --keep 0.5 --json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    cases.check(json.loads(done.stdout)["tokens"]["dataset"] == "bücher/文本/🜚", f"{done.stdout[:2000]!r}")


@pytest.mark.reliability("R22", "R20")
def test_a_terminal_of_20_columns(plan, cases):
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    environment = os.environ | {"COLUMNS": "20", "LINES": "5", "TERM": "xterm"}
    command = [sys.executable, "-m", "indexcache.cli", "eval", str(plan)]
    # A terminal's buffer is small, so its output is read while the program runs.
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        os.set_blocking(leader, True)
        shown = b""
        try:
            while piece := os.read(leader, 1 << 16):
                shown += piece
        except OSError:  # all writers are gone
            pass
    os.close(leader)
    cases.check(process.returncode == 0 and b"Traceback" not in shown, f"{shown[-800:]!r}")
    delta = json.loads(plan.read_text())["heldout"]["plan"]["delta"]
    cases.check(f"{delta:+.4f}".encode() in shown, f"no figures in {shown[-800:]!r}")


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
    for each in (folder, *folder.parents):
        if each.owner() and str(each).startswith("/tmp/") and os.geteuid() == 0:
            each.chmod(0o755)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def opened_up(path):
    """``path`` and what is in it, readable for all."""
    for each in (path, *path.rglob("*"), *path.parents):
        if str(each).startswith("/tmp/") and os.geteuid() == 0:
            each.chmod(each.stat().st_mode | (0o555 if each.is_dir() else 0o444))
    return path


@pytest.mark.reliability("R22", "R6")
def test_folders_that_cannot_be_written(
    run_cli, checkpoints, text_file, searched, read_only, cases, monkeypatch, tmp_path
):
    model, text, run = opened_up(checkpoints["eight"]), opened_up(text_file), opened_up(searched)
    monkeypatch.chdir(read_only)
    arguments = ["search", "--model", model, "--dataset", text, "--keep", 0.5, "--window", 48, "--windows", 2]
    jobs = {
        "the working folder": [*arguments, "--heldout", 1, "-q"],
        "a run's folder": [*arguments, "--heldout", 1, "-q", "--out", read_only / "deep" / "run"],
        "a cut": ["cut", run, "--keep", 0.5, "--out", read_only / "plan.json"],
        "a report": ["report", run, "--out", read_only],
        "a config": ["export", run, "--to", "vllm", "--write", read_only / "new", "-q"],
        "a checkpoint": ["export", run, "--to", "vllm", "--write", read_only / "n", "--strip-weights", "-q"],
    }
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
def test_no_home_and_a_cache_that_cannot_be_written(checkpoints, text_file, read_only, clean, tmp_path):
    arguments = (
        f"--model {checkpoints['eight']} --dataset {text_file} --keep 1 --window 48 --windows 2 --heldout 1"
    )
    command = f"env -u HOME $INDEXCACHE search {arguments} --out {tmp_path / 'run'} -q"
    # Not as another user: packages may be readable for this one alone.
    changes = {"HF_HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "MPLCONFIGDIR": "/proc/nowhere"}
    done = run_shell(command, **changes)
    clean("no HOME, no cache", done, 0, 2)


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
