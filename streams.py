"""The program's streams: open whatever the shell closed, and able to write any character in some way."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from .plain_text import spell_out


def prepare_streams() -> None:
    """Makes stdout and stderr take any text.

    A stream that the shell closed leads nowhere from then on: else the next file that is opened would get its
    number, and with it what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=spell_out())


@contextmanager
def result_alone(restore: bool = True) -> Iterator[None]:
    """Within it stdout's number leads to stderr, and ``sys.stdout`` to where stdout led.

    So what libraries print past Python, and programs that they start, stands beside the progress, and stdout
    holds the result alone.

    Args:
        restore: puts both back at the end; else, where the program ends, what still waits in C's buffers must
            not get there either.
    """
    before, there = sys.stdout, os.dup(1)
    before.flush()
    os.dup2(2, 1)
    result = _like(before, there) if isinstance(before, io.TextIOWrapper) and _is_number_one(before) else None
    if result is not None:
        _replace_stdout(result)
    try:
        yield
    finally:
        if restore:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)
            os.dup2(there, 1)
            if result is None:
                os.close(there)
            else:
                _replace_stdout(before)
                with suppress(OSError):  # what could not be printed was told
                    result.close()


def _like(stream: io.TextIOWrapper, number: int) -> TextIO:
    """A stream that writes to ``number`` as ``stream`` writes."""
    buffering = 1 if stream.line_buffering else -1
    return os.fdopen(number, "w", buffering, encoding=stream.encoding, errors=stream.errors)


def _replace_stdout(stream: TextIO) -> None:
    """Puts ``stream`` in stdout's place, for those too who ask its terminal for the width."""
    if sys.__stdout__ is sys.stdout:
        sys.__stdout__ = stream  # type: ignore[misc, assignment]
    sys.stdout = stream


@contextmanager
def libraries_beside() -> Iterator[None]:
    """Within it also what Python code prints goes to stderr; for while libraries work and no result is printed."""
    with redirect_stdout(sys.stderr):
        yield


def _is_number_one(stream: io.TextIOWrapper) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):  # what stands in for it has no number
        return False


def abandon(stream: TextIO) -> None:
    """Points ``stream`` elsewhere, so that the interpreter's last flush of it is silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
