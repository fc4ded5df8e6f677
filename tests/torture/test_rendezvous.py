"""Processes that do not all come: for whom one waits is said, signals end it, and the wait is bounded."""

import os
import signal
import socket
import time

import pytest
from children import Child, one_line

from indexcache.errors import SettingError
from indexcache.system import processes, rendezvous
from indexcache.system.launching import Launch


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(rank, port, host="localhost", **more):
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": str(port), **more}


def waiting(arguments, folder, environment, seconds, said=0.1):
    """A process that says after ``said`` seconds for whom it waits, and gives up after ``seconds``."""

    def before():
        from accelerate import PartialState

        PartialState._reset_state()
        rendezvous._FIRST_WORD_SECONDS, rendezvous._JOIN_SECONDS = said, seconds

    return Child(arguments, folder, before, {"ACCELERATE_USE_CPU": "true", **environment})


def heard(child, words, seconds=60):
    """Waits until the process has said ``words``."""
    end = time.monotonic() + seconds
    while words not in (said := child.stderr()):
        assert time.monotonic() < end, said
        time.sleep(0.02)


@pytest.mark.parametrize(("rank", "absent"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(rank, absent, number, real, port, tmp_path):
    arguments, _ = real
    child = waiting([*arguments, "--out", tmp_path / "run"], tmp_path, together(rank, port), 3600)
    heard(child, f"process {rank} of 2 waits at localhost:{port} (MASTER_ADDR, MASTER_PORT) for process {absent}")
    sent = time.monotonic()
    child.kill(number)
    ended = child.wait()
    assert ended.code == 128 + number
    assert time.monotonic() - sent < 5  # not for the hour that it would have waited
    assert f"stopped while process {rank} of 2 waits at localhost:{port}" in ended.err


@pytest.mark.parametrize(
    ("environment", "absent"),
    {
        "left over by the main process": ({"RANK": "0"}, "for process 1: none came within 1 s"),
        "left over by another process": ({"RANK": "1"}, "for process 0: none came within 1 s"),
    }.values(),
)
def test_the_wait_is_bounded(environment, absent, real, port, tmp_path):
    arguments, _ = real
    child = waiting(
        [*arguments, "--json", "--out", tmp_path / "run"],
        tmp_path,
        {**together(0, port), **environment},
        1,
        said=60,
    )
    ended = child.wait()
    assert (ended.code, one_line(ended.err), absent in ended.err) == (2, True, True), ended
    assert "unset RANK, WORLD_SIZE" in ended.err
    assert '"type": "SettingError"' in ended.out, "with nobody else there, this process has to tell"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_is_none_is_said_at_once(rank, real, port, tmp_path):
    arguments, _ = real
    began = time.monotonic()
    environment = together(rank, port, "nowhere.invalid")
    ended = waiting([*arguments, "--json", "--out", tmp_path / "run"], tmp_path, environment, 3600).wait()
    assert (ended.code, one_line(ended.err)) == (2, True), ended
    assert "MASTER_ADDR is 'nowhere.invalid': " in ended.err
    assert "Name or service not known" in ended.err or "name resolution" in ended.err
    assert time.monotonic() - began < 60  # not for the hour that it would have waited


def test_how_long_it_waits_can_be_said(monkeypatch, port, tmp_path):
    def join():
        meeting = rendezvous.Meeting(Launch(1, 2, 1, "localhost", port))
        with pytest.raises(SettingError, match=r"none came within 0\.5 s \(INDEXCACHE_JOIN_SECONDS\)"):
            meeting.join(lambda store: None)
        return 0

    # In a process of its own: a thread goes on knocking for seconds.
    ended = waiting(join, tmp_path, {"INDEXCACHE_JOIN_SECONDS": "0.5"}, 60).wait()
    assert ended.code == 0, ended
    for text in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("INDEXCACHE_JOIN_SECONDS", text)
        with pytest.raises(SettingError, match="INDEXCACHE_JOIN_SECONDS is"):
            rendezvous.join_seconds()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_the_cores_that_accelerate_takes_are_the_main_threads(port, tmp_path):
    def bound():
        cores = {min(os.sched_getaffinity(0))}
        enter = rendezvous.Meeting.join

        def join(meeting, connect):
            def bind(store):
                os.sched_setaffinity(0, cores)  # as ACCELERATE_CPU_AFFINITY has accelerate do
                return connect(store)

            return enter(meeting, bind)

        rendezvous.Meeting.join = join
        processes.process_count()
        return 0 if os.sched_getaffinity(0) == cores else 1

    children = [waiting(bound, tmp_path, together(rank, port), 120, said=60) for rank in range(2)]
    ended = [child.wait() for child in children]
    assert [child.code for child in ended] == [0, 0], ended


def test_a_place_that_is_taken_is_named(real, tmp_path):
    arguments, _ = real
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = waiting([*arguments, "--out", tmp_path / "run"], tmp_path, together(0, port), 60).wait()
    assert (ended.code, one_line(ended.err), f"localhost:{port}" in ended.err) == (2, True, True), ended


@pytest.mark.parametrize(
    "environment",
    [
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        {"LOCAL_RANK": "1", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"},
    ],
)
def test_what_names_no_others_keeps_nobody_waiting(environment, real, tmp_path):
    arguments, _ = real

    def counted():
        return 0 if processes.process_count() == 1 and not processes.process_index() else 1

    assert waiting(counted, tmp_path, environment, 1).wait().code == 0
    if environment.get("PMI_SIZE") == "2":
        ended = waiting([*arguments, "--out", tmp_path / "run"], tmp_path, environment, 1).wait()
        assert (ended.code, ended.err.count("warning: PMI_SIZE is 2")) == (0, 1), ended


WARNED = ("only the main one", "only the other one", "both")


def warn_twice():
    """Warns of what one process sees, and of what both see."""
    from indexcache.system.console import Reporter

    rank = int(os.environ["RANK"])
    processes.process_count()
    with Reporter(quiet=True, main=rank == 0, is_first=processes.is_first) as reporter:
        reporter.warn(WARNED[rank])
        reporter.warn(WARNED[2])
        processes.merge({rank: rank})
    processes.merge({rank: rank})  # the store goes with the main process
    return 0


def test_a_warning_is_told_once(port, tmp_path):
    children = [waiting(warn_twice, tmp_path, together(rank, port), 120, said=60) for rank in range(2)]
    ended = [child.wait() for child in children]
    assert [process.code for process in ended] == [0, 0], ended
    lines = [line for process in ended for line in process.err.splitlines()]
    assert sorted(lines) == sorted(f"warning: {what} [docs/troubleshooting.md#warnings]" for what in WARNED), ended
