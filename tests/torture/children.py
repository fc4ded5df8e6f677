"""Runs the command line in forked children, which start at once, so that hundreds can be killed for real."""

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from indexcache.cli import main
from indexcache.search.run.journal import Journal
from indexcache.search.run.records import LossesRecord


@dataclass(frozen=True)
class Outcome:
    """What became of a child: its exit code, negative for the signal that killed it, and what it wrote."""

    code: int
    out: str
    err: str


class Child:
    """A forked process that runs ``job`` after ``before()``, its output in files of ``folder``.

    A job is the arguments of a command, or a function that returns an exit code.
    """

    def __init__(self, job, folder, before=lambda: None, environment=None):
        self.is_over = False
        self._streams = [Path(folder) / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        self.pid = os.fork()
        if not self.pid:
            self._run(job, before, environment or {})

    def _run(self, job, before, environment):
        code = 70
        try:
            for number, path in zip((1, 2), self._streams, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os.environ.update(environment)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # nohup and background shells have tests ignore some
            before()
            code = job() if callable(job) else main(list(map(str, job)))
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:  # shown to the test, which expects none
            print("Traceback", repr(error), file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def stderr(self):
        """What it has written there so far."""
        return self._streams[1].read_text() if self._streams[1].exists() else ""

    def wait(self, seconds=90):
        """Waits for the end, and kills a child that takes longer."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.002)
        out, err = (path.read_text() if path.exists() else "" for path in self._streams)
        for path in self._streams:
            path.unlink(missing_ok=True)
        self.is_over = True
        return Outcome(os.waitstatus_to_exitcode(status), out, err)


def run_child(job, folder, before=lambda: None, environment=None):
    """A child from start to end."""
    return Child(job, folder, before, environment).wait()


def run_together(arguments, folder, processes, stop_after=None, prepare=None):
    """Runs a search in so many forked processes that work together; returns their outcomes by rank.

    The main one is killed after ``stop_after`` pieces of losses; ``prepare(rank)`` runs in each before it begins.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    children = []
    for rank in range(processes):

        def before(rank=rank):
            from accelerate import PartialState

            PartialState._reset_state()
            if rank == 0 and stop_after is not None:
                kill_after(stop_after)
            if prepare is not None:
                prepare(rank)

        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", **together}
        children.append(Child(arguments, folder, before, variables if processes > 1 else {}))
    outcomes = [children[0].wait()]
    for child in children[1:]:
        if outcomes[0].code < 0:  # what a launcher does when one of its processes is gone
            child.kill()
        outcomes.append(child.wait())
    return outcomes


def kill_after(pieces):
    append, losses = Journal.append, []

    def append_and_die(self, record):
        append(self, record)
        losses.extend([record] if isinstance(record, LossesRecord) else [])
        if len(losses) == pieces:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = append_and_die


def one_line(text):
    """Whether an error is one line and no traceback; warnings and notes may stand before it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("warning: ")]
    return len(lines) == 1 and "Traceback" not in text


def spread(total, wanted):
    """About ``wanted`` of the numbers below ``total``, the first and the last among them."""
    if total <= wanted:
        return list(range(total))
    return sorted({round(index * (total - 1) / (wanted - 1)) for index in range(wanted)})
