"""Two writers of one folder, locks of the dead, process ids used again, and file systems without locks."""

import errno
import fcntl
import os
import time

import pytest
from children import Child, one_line

from indexcache.system.locking import LOCK_FILE, locked

pytestmark = pytest.mark.reliability("R7")


@pytest.fixture
def writer(search_on_paper, paper, tmp_path):
    """A process that is in the middle of a search in a folder."""
    out, reached = tmp_path / "run", tmp_path / "reached"

    def stay():
        from indexcache.search.run.journal import Journal
        from indexcache.search.run.records import LossesRecord

        append = Journal.append

        def append_and_stay(self, record):
            append(self, record)
            if isinstance(record, LossesRecord):
                reached.touch()
                time.sleep(60)

        Journal.append = append_and_stay

    child = Child(lambda: search_on_paper(out), tmp_path, stay)
    while not reached.exists():
        time.sleep(0.01)
    yield child, out
    if not child.is_over:
        child.kill()
        child.wait()


def test_a_second_writer_is_refused_at_once_and_told_of_the_first(writer, paper):
    child, out = writer
    journal = (out / "journal.jsonl").read_bytes()
    began = time.monotonic()
    code, err = paper(out)
    assert time.monotonic() - began < 1
    assert (code, one_line(err)) == (2, True)
    assert f"another search, process {child.pid} on " in err
    assert (out / "journal.jsonl").read_bytes() == journal


def test_a_dead_ones_lock_is_free_at_once(writer, paper, finished):
    child, out = writer
    child.kill()
    assert child.wait().code == -9
    began = time.monotonic()
    with locked(out, pytest.fail):
        assert time.monotonic() - began < 1
    assert paper(out)[0] == 0
    assert (out / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()


def test_a_process_id_that_is_used_again_locks_nothing(paper, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).write_text(f"{os.getppid()} here\n")
    assert paper(tmp_path / "run")[0] == 0


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_search_warns_and_goes_on(paper, finished, tmp_path, monkeypatch, code):
    def no_lock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    code, err = paper(tmp_path / "run")
    assert code == 0
    assert err.count("has no locks") == len(err.splitlines()) == 1
    assert (tmp_path / "run" / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()
