"""Turns SIGINT, SIGTERM and SIGHUP into one exception, which waits while a file is being written."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from .launching import is_one_of_several

# A launcher, timeout(1) or a terminal often sends one stop twice; a second one later means "at once".
_SAME_STOP_SECONDS = 0.2
_WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop(BaseException):
    """The program was asked to stop. No Exception, so that nobody takes it for a failure and goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.name = signal.Signals(number).name


class _Stops:
    """The stop asked for, if any, and how many writes it has to wait for."""

    asked: int | None = None
    when = 0.0
    waits = False
    held = 0
    over = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.over:
            return
        if self.asked is not None:
            if time.monotonic() - self.when > _SAME_STOP_SECONDS:
                os._exit(128 + number)
            return
        self.asked, self.when = number, time.monotonic()
        if self.held:
            self.waits = True
        else:
            raise Stop(number)


_stops = _Stops()


@contextmanager
def stops_raised(restore: bool = True) -> Iterator[None]:
    """Within it the signals raise ``Stop`` in the main thread; a second one exits the process at once.

    Signals that were ignored before, as nohup and background shells have it, stay ignored.

    Args:
        restore: gives the signals back afterwards; else, where the program only has to say how it ended, they do
            nothing from then on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    own_hook = sys.unraisablehook
    _stops.asked, _stops.waits, _stops.held, _stops.over = None, False, 0, False
    try:
        for number in _WATCHED:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _stops.handle)
        sys.unraisablehook = lambda each: None if isinstance(each.exc_value, Stop) else own_hook(each)
        yield
    finally:
        _stops.over = True
        for number, handler in before.items() if restore else ():
            signal.signal(number, handler)
        sys.unraisablehook = own_hook


def leave(code: int) -> NoReturn:
    """Ends the program with ``code``; a signal that comes meanwhile makes that quicker, and changes nothing."""
    for number in _WATCHED:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, lambda *_: os._exit(code))
    if os.environ.get("WORLD_SIZE", "1") != "1" or is_one_of_several():
        # Now and then one of several processes aborts, all done, as Python takes the others' connections down.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def held() -> Iterator[None]:
    """Within it a stop waits; at its end it is raised."""
    _stops.held += 1
    try:
        yield
    finally:
        _stops.held -= 1
    if _stops.waits and not _stops.held:
        _stops.waits = False
        check_stop()


def check_stop() -> None:
    """Raises a stop that was asked for, also one that was lost where nothing can be raised, as in a destructor."""
    if _stops.asked is not None and threading.current_thread() is threading.main_thread():
        raise Stop(_stops.asked)
