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


class _Request:
    """The stop that was asked for, if any, and the writes that it has to wait for.

    One for the whole process, as signal handlers are.
    """

    number: int | None = None
    moment = 0.0
    is_pending = False
    writes = 0
    is_over = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.is_over:
            return
        if self.number is not None:
            if time.monotonic() - self.moment > _SAME_STOP_SECONDS:
                os._exit(128 + number)
            return
        self.number, self.moment = number, time.monotonic()
        if self.writes:
            self.is_pending = True
        else:
            raise Stop(number)


_request = _Request()


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
    hook_before = sys.unraisablehook
    _request.number, _request.is_pending, _request.writes, _request.is_over = None, False, 0, False
    try:
        for number in _WATCHED:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _request.handle)
        # A stop raised within a destructor is lost there; check_stop raises it again.
        sys.unraisablehook = lambda args: None if isinstance(args.exc_value, Stop) else hook_before(args)
        yield
    finally:
        _request.is_over = True
        for number, handler in before.items() if restore else ():
            signal.signal(number, handler)
        sys.unraisablehook = hook_before


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
def stops_held() -> Iterator[None]:
    """Within it a stop waits, also where it is nested; at the end of the outermost one it is raised."""
    _request.writes += 1
    try:
        yield
    finally:
        _request.writes -= 1
    if _request.is_pending and not _request.writes:
        _request.is_pending = False
        check_stop()


def check_stop() -> None:
    """Raises a stop that was asked for, also one that was lost where nothing can be raised, as in a destructor."""
    if _request.number is not None and threading.current_thread() is threading.main_thread():
        raise Stop(_request.number)
