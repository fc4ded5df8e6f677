"""How the program ends: errors as one line or one JSON document, exit codes, signals and closed streams."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import (
    GateError,
    IndexcacheError,
    InterruptedRunError,
    OutputError,
    SettingError,
    spelling_handler,
    wrapped,
)
from .launching import current_launch, main_process_answers, speaks
from .signals import Stop, stops_raised


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
            stream.reconfigure(errors=spelling_handler())


@contextmanager
def result_alone(restore: bool = True) -> Iterator[None]:
    """Within it stdout's number leads to stderr, and ``sys.stdout`` to where stdout led.

    So what libraries print past Python, and programs that they start, stands beside the progress, and stdout
    holds the result alone.

    Args:
        restore: puts both back at the end; else, where the program ends, what still waits in C's buffers must
            not get there either.
    """
    before, handle = sys.stdout, os.dup(1)
    before.flush()
    os.dup2(2, 1)
    result = _like(before, handle) if isinstance(before, io.TextIOWrapper) and _is_number_one(before) else None
    if result is not None:
        _replace_stdout(result)
    try:
        yield
    finally:
        if restore:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)
            os.dup2(handle, 1)
            if result is None:
                os.close(handle)
            else:
                _replace_stdout(before)
                with suppress(OSError):  # an earlier flush said what could not be printed
                    result.close()


def _like(stream: io.TextIOWrapper, handle: int) -> TextIO:
    """A stream that writes to ``handle`` as ``stream`` writes."""
    buffering = 1 if stream.line_buffering else -1
    return os.fdopen(handle, "w", buffering, encoding=stream.encoding, errors=stream.errors)


def _replace_stdout(stream: TextIO) -> None:
    """Puts ``stream`` in stdout's place, also for libraries that ask the original stdout for its width."""
    if sys.__stdout__ is sys.stdout:
        sys.__stdout__ = stream  # type: ignore[misc, assignment]
    sys.stdout = stream


@contextmanager
def prints_to_stderr() -> Iterator[None]:
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


# The command line's library turns an interrupt into this code.
_INTERRUPTED, _PIPE_CLOSED = 130, 141
_STREAM_FAILS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ENXIO)


def exit_code_of(job: Callable[[], int | None], as_json: bool, restore: bool = True) -> int:
    """Runs ``job``, prints whatever error ends it, and returns the exit code.

    0 done, 1 a check failed, 2 wrong use or input, 75 stopped by a signal with everything kept that was
    measured, 128 + the signal's number with nothing to keep, 141 stdout closed by its reader.

    Args:
        job: what to run; returns an exit code, or None for 0.
        as_json: whether errors are printed as documents too.
        restore: see ``signals.stops_raised``.
    """
    prepare_streams()
    with result_alone(restore):
        return _run(job, as_json, restore)


def _run(job: Callable[[], int | None], as_json: bool, restore: bool) -> int:
    try:
        with stops_raised(restore):
            code = job() or 0
            if code == _INTERRUPTED:
                raise Stop(2)
            sys.stdout.flush()
    except IndexcacheError as error:
        code = _fail(error, as_json)
    except Stop as stop:
        code = _fail(InterruptedRunError(stop.number), as_json)
    except KeyboardInterrupt:
        code = _fail(InterruptedRunError(), as_json)
    except (BrokenPipeError, SystemExit) as departure:
        # typer exits with 1 there, which is the code of a failed check.
        if isinstance(departure, SystemExit) and not isinstance(departure.__context__, BrokenPipeError):
            raise
        abandon(sys.stdout)
        code = _PIPE_CLOSED
    except Exception as error:
        translation = _translated(error)
        code = _fail(translation, as_json and not isinstance(translation, OutputError))
        if isinstance(translation, OutputError):
            abandon(sys.stdout)
    return code


def _fail(error: IndexcacheError, as_json: bool) -> int:
    # Of several processes one prints what all of them met. Where no stream takes it, the exit code still says it.
    prints = speaks() or error.alone or (error.shared and _is_wrong_before_meeting(error))
    with suppress(OSError):
        if not prints and not error.shared:
            print(f"error in process {os.environ.get('RANK', '')}: {error.told()}", file=sys.stderr, flush=True)
        if prints:
            print(wrapped(f"error: {error.told()}", sys.stderr), file=sys.stderr, flush=True)
    if prints and as_json and not (isinstance(error, GateError) and error.has_document):
        try:
            print(json.dumps(error.as_json(), indent=2), flush=True)
        except OSError:
            abandon(sys.stdout)
    return error.exit_code


def _is_wrong_before_meeting(error: IndexcacheError) -> bool:
    """Whether wrong input ended this process before it met the main one, and nobody there says so for it.

    Variables of an earlier job name a main process that is not there.
    """
    from .rendezvous import Meeting

    if error.exit_code != IndexcacheError.exit_code or Meeting.is_any_held:
        return False
    launch = current_launch()
    return launch is not None and not main_process_answers(launch)


def _translated(error: Exception) -> IndexcacheError:
    """A wrong option as typer reports it, or what nobody foresaw, as an error of this program."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_FAILS:
        return OutputError(f"the result cannot be printed: {error.strerror or error}", hint="")
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return SettingError("the folder that this runs in is gone", hint="change to another one")
    if hasattr(error, "format_message"):
        return SettingError(error.format_message(), hint="--help shows the options")
    if os.environ.get("INDEXCACHE_TRACEBACK"):
        traceback.print_exception(error)
    return IndexcacheError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this should not happen: set INDEXCACHE_TRACEBACK=1, run again and report it",
    )


def print_result(result: str | dict[str, Any]) -> None:
    """Prints what a command is asked for, on stdout: text as it is, anything else as JSON."""
    print(result if isinstance(result, str) else json.dumps(result, indent=2), flush=True)
