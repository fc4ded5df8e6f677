"""How far a command is, said on stderr while it works, and how its tables are printed."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..errors import one_line, terminal_width, warning, wrapped

# A line at least this often, so that nobody takes the run for stuck; the second is for what takes minutes.
_HEARTBEAT_SECONDS, _SLOW_HEARTBEAT_SECONDS = 5.0, 10.0
_MINUTE = 60.0
_UNNAMED_SECONDS, _LOOK_SECONDS = 1.0, 0.5
# A process other than the main one waits this long before it warns: the main one often sees the same.
_DEFERENCE_SECONDS = 5.0
# Columns from which a bar shows everything, and below which it shows no bar.
_NARROW, _NARROWEST = 80, 40


class _Bar(Progress):
    """A progress bar whose count and time left stay whole where the terminal is narrow."""

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        super().__init__(console=terminal, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar for the terminal as wide as it is now."""
        count, rest = MofNCompleteColumn(), TimeRemainingColumn(compact=True)
        width = self._terminal.width
        if width >= _NARROW:
            bar = BarColumn(bar_width=min(40, 20 + width - _NARROW))
            self.columns = (TextColumn("{task.description}"), bar, count, TimeElapsedColumn(), rest)
        elif width >= _NARROWEST:
            self.columns = (BarColumn(bar_width=width - _NARROWEST + 8), count, rest)
        else:
            self.columns = (count, rest)
        yield from super().get_renderables()


class Reporter:
    """Tells how far a run is; a context manager.

    Args:
        quiet: say nothing but warnings.
        clock: seconds that pass.
        main: whether this is the main one of several processes, or the only one.
        is_first: whether no process has printed a given line before.
    """

    def __init__(
        self,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        main: bool = True,
        is_first: Callable[[str], bool] = lambda line: True,
    ) -> None:
        self._quiet = quiet
        self._clock = clock
        self._main = main
        self._is_first = is_first
        self._deferred: list[tuple[float, str]] = []
        # FORCE_COLOR would have rich draw a bar into a log file too, in thousands of lines.
        self._console = Console(stderr=True, highlight=False, emoji=False, force_terminal=sys.stderr.isatty())
        self._total = 0
        self._done = 0
        self._earlier = 0  # of those done, what earlier sessions did
        self._is_guess = False
        self._activity = "reading"
        self._is_named = False
        self._start = self._clock()
        self._last_line = self._start
        self._stop = threading.Event()
        self._bar: Progress | None = None
        self._pulse_thread: threading.Thread | None = None

    def __enter__(self) -> Reporter:
        if not (self._quiet and self._main):
            self._pulse_thread = threading.Thread(target=self._beat, daemon=True)
            self._pulse_thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._pulse_thread is not None:
            self._pulse_thread.join()
            self._pulse_thread = None
        self._warn_deferred(self._clock())

    def doing(self, what: str) -> None:
        """Names what is going on, for as long as there is nothing to count."""
        self._activity, self._total = what, 0
        self._start = self._clock()
        self._is_named = self._console.is_terminal
        if self._is_named:
            self.say(what)

    def begin(self, total: int, unit: str, guessed: bool = False) -> None:
        """Starts counting towards ``total`` units of work; a ``guessed`` total grows with what is done."""
        self._is_guess = guessed
        self._total, self._done, self._earlier, self._activity = total, 0, 0, unit
        self._start = self._clock()
        if self._bar is not None:
            self._bar.stop()
        if not self._quiet and self._console.is_terminal:
            self._bar = _Bar(self._console)
            self._bar.add_task(unit, total=total)
            self._bar.start()

    def advance(self, amount: int) -> None:
        """``amount`` more units are done."""
        self._done += amount
        if self._is_guess:
            self._total = max(self._total, self._done)
        elif self._total:  # processes with unlike shares count for each other
            self._done = min(self._total, self._done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, total=self._total)

    def skip(self, amount: int) -> None:
        """``amount`` more units were done before and took no time now."""
        self._earlier += amount
        self.advance(amount)

    def say(self, line: str) -> None:
        """Prints one line of news."""
        if not self._quiet:
            self._print(line)

    def warn(self, line: str) -> None:
        """Prints one line that matters even to those who asked for quiet, and where the caller's are explained."""
        line = warning(line, sys._getframe(1).f_globals.get("__name__", ""))
        if not self._main:
            self._deferred.append((self._clock(), line))
        elif self._is_first(line):
            self._print(line)

    def _warn_deferred(self, until: float) -> None:
        """Warns of what came up here before ``until``, as far as no other process has."""
        while self._deferred and self._deferred[0][0] <= until:
            _, line = self._deferred.pop(0)
            if self._is_first(line):
                self._print(line)

    def _print(self, line: str) -> None:
        self._last_line = self._clock()
        # A closed stderr must not end the run.
        with suppress(OSError):
            if self._console.is_terminal:
                # Lines end where words do; what is one word, such as a path, stays one.
                self._console.print(wrapped(one_line(line), sys.stderr), soft_wrap=True, markup=False)
            else:
                print(one_line(line), file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            self.pulse()

    def pulse(self) -> None:
        """Prints how far the run is, if nothing has been printed for long."""
        now = self._clock()
        self._warn_deferred(now - _DEFERENCE_SECONDS)
        spent = now - self._start
        pause = _HEARTBEAT_SECONDS if spent < _MINUTE else _SLOW_HEARTBEAT_SECONDS
        if self._quiet or self._bar is not None:
            return
        if not (self._is_named or self._total) and spent >= _UNNAMED_SECONDS:
            # What is over sooner needs no line.
            self._is_named = True
            self._print(self._activity)
        elif now - self._last_line >= pause - 1:
            self._print_progress(spent)

    def _print_progress(self, spent: float) -> None:
        if self._total:
            # Seconds left by the pace of what was done now; what earlier sessions did took none of them.
            new, rest = self._done - self._earlier, self._total - self._done
            guess = f", about {spent / new * rest:.0f} s left" if new > 0 and rest > 0 else ""
            self._print(f"{self._done} of {self._total} {self._activity}, {spent:.0f} s{guess}")
        else:
            self._print(f"{self._activity}, {spent:.0f} s")


def duration(seconds: float) -> str:
    """``seconds`` for people: in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def byte_count(size: int) -> str:
    """``size`` bytes for people, in decimal units as disks and links are sold: 14.5 GB."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            value = size / 10**power
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{size} bytes"


class _Console(Console):
    """Plain text unless a terminal reads it, whatever the environment says; a reader that left is no failure."""

    def on_broken_pipe(self) -> None:
        """Leaves the exit code to the command line; rich's own would be that of a failed check."""
        raise BrokenPipeError


def print_line(console: Console, line: str) -> None:
    """Prints a line of words, which ends at words on a terminal and is left whole elsewhere."""
    console.print(wrapped(line, console.file), soft_wrap=True)  # type: ignore[arg-type]


def print_table(console: Console, table: Table) -> None:
    """Prints a table of figures; on a terminal that is too narrow for it, one figure a line."""
    width = terminal_width(console.file)  # type: ignore[arg-type]
    if width is None or console.measure(table).maximum <= width:
        console.print(table)
        return
    first, *others = table.columns
    for row in zip(*(column.cells for column in table.columns), strict=True):
        print_line(console, f"{first.header} {row[0]}")
        for column, figure in zip(others, row[1:], strict=True):
            if figure:
                print_line(console, f"  {column.header} {figure}")


def new_console(stderr: bool = False, narrow: bool = False) -> Console:
    """A console for tables: 100 columns or more, as figures are never cut off.

    Args:
        stderr: prints there instead of on stdout.
        narrow: keeps to the terminal's width, where it is one; for tables of words, which can be wrapped.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = terminal_width(stream) if narrow else None
    return _Console(
        file=stream,
        force_terminal=stream.isatty(),
        width=width or max(100, shutil.get_terminal_size().columns),
        highlight=False,
        markup=False,
        emoji=False,
    )
