"""Several processes of which one is stopped, lost or cannot write: the others end too, and the run goes on."""

import errno
import os
import signal

import pytest
from children import one_line, run_together

from indexcache.commands import search as search_command
from indexcache.dsa.model.losses import PatternLosses
from indexcache.search.run.journal import Journal

SWEEP = "compare_all"


def after(owner, name, calls, job):
    """Does ``job`` before one of the calls of a function."""
    function, made = getattr(owner, name), []

    def wrapper(*given, **named):
        made.append(name)
        if len(made) == calls:
            job()
        return function(*given, **named)

    setattr(owner, name, wrapper)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# What happens to which process, the code and the first words that the main one ends with.
CASES = {
    "the main one is stopped": ((0, PatternLosses, SWEEP, 6, stop), 75, "error: stopped by SIGTERM"),
    "the other one is stopped": (
        (1, PatternLosses, SWEEP, 6, stop),
        75,
        "error: another process of this run",
    ),
    "the other one is killed": (
        (1, PatternLosses, SWEEP, 6, kill),
        75,
        "error: another process of this run",
    ),
    "the main one is stopped as it writes": (
        (0, search_command, "save_run", 1, stop),
        75,
        "error: stopped by SIGTERM",
    ),
    "the disk is full": ((0, Journal, "append", 9, lambda: after(os, "write", 1, fail)), 2, "error: '"),
}


@pytest.mark.reliability("R18")
@pytest.mark.parametrize("case", CASES)
def test_the_others_end_too(case, real, full, tmp_path):
    if not full and case not in ("the other one is stopped", "the disk is full"):
        pytest.skip("starting several processes takes seconds: in the full run")
    arguments, reference = real
    (struck, *place), code, words = CASES[case]
    command = [*arguments, "--out", tmp_path / "run"]
    ended = run_together(command, tmp_path, 2, prepare=lambda rank: rank == struck and after(*place))
    assert (ended[0].code, one_line(ended[0].err)) == (code, True), ended
    assert ended[0].err.startswith(words)
    assert not ended[1].err, ended
    assert all(process.code in (code, 75, -9) for process in ended), ended
    again = run_together(command, tmp_path, 2)
    assert [process.code for process in again] == [0, 0], again
    assert (tmp_path / "run" / "plan.json").read_bytes() == (reference / "plan.json").read_bytes()
