"""Progress of a long measurement on stderr: a bar on a terminal, plain lines every 30 s elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .plain_text import one_line

_HEARTBEAT_SECONDS = 30.0


class Reporter:
    """Tells how far a run is; a context manager.

    Args:
        quiet: say nothing but warnings.
        clock: seconds that pass.
    """

    def __init__(self, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        # Whatever the environment says of colours: a bar in a log is thousands of lines.
        self._console = Console(stderr=True, highlight=False, emoji=False, force_terminal=sys.stderr.isatty())
        self._total = 0
        self._done = 0
        self._known = 0
        self._doing = "reading"
        self._began = self._clock()
        self._spoke = self._began
        self._stop = threading.Event()
        self._bar: Progress | None = None
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Reporter:
        if not self._quiet and not self._console.is_terminal:
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._heart is not None:
            self._heart.join()
            self._heart = None

    def doing(self, what: str) -> None:
        """Names what is going on, for as long as there is nothing to count."""
        self._doing, self._total = what, 0
        self._began = self._clock()
        if self._console.is_terminal:
            self.say(what)

    def begin(self, total: int, unit: str) -> None:
        """Starts counting towards about ``total`` units of work."""
        self._total, self._done, self._known, self._doing = total, 0, 0, unit
        self._began = self._clock()
        if not self._quiet and self._console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True
            )
            self._bar.add_task(unit, total=total)
            self._bar.start()

    def advance(self, amount: int) -> None:
        """``amount`` more units are done."""
        self._done += amount
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], amount)

    def skip(self, amount: int) -> None:
        """``amount`` more units were done before and took no time now."""
        self._known += amount
        self.advance(amount)

    def say(self, line: str) -> None:
        """Prints one line of news."""
        if not self._quiet:
            self._print(line)

    def warn(self, line: str) -> None:
        """Prints one line that matters even to those who asked for quiet."""
        self._print(f"warning: {line}")

    def _print(self, line: str) -> None:
        self._spoke = self._clock()
        # A reader of the progress who left must not cost the run.
        with suppress(OSError):
            if self._console.is_terminal:
                self._console.print(escape(one_line(line)), soft_wrap=True)
            else:
                print(one_line(line), file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._stop.wait(1.0):
            self.pulse()

    def pulse(self) -> None:
        """Prints how far the run is, if nothing has been printed for long."""
        now = self._clock()
        if now - self._spoke < _HEARTBEAT_SECONDS - 1:
            return
        spent = now - self._began
        if self._total:
            new, rest = self._done - self._known, self._total - self._done
            left = spent / new * rest if new > 0 and rest > 0 else None
            guess = "" if left is None else f", about {left:.0f} s left"
            self._print(f"{self._done} of {self._total} {self._doing}, {spent:.0f} s{guess}")
        else:
            self._print(f"{self._doing}, {spent:.0f} s")
