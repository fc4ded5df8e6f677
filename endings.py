"""How the program ends: errors as one line or one JSON document, exit codes, signals and closed pipes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable

from .errors import GateError, IndexcacheError, InterruptedRunError, OutputError, SettingError
from .signals import Stop, stops_raised

# The command line's library turns an interrupt into this code.
_INTERRUPTED, _PIPE_CLOSED = 130, 141


def speaks() -> bool:
    """Whether this is the process, of several under ``accelerate launch``, that prints."""
    return os.environ.get("RANK", "0") == "0"


def exit_code_of(job: Callable[[], int | None], as_json: bool) -> int:
    """Runs ``job`` and tells of whatever ends it.

    0 done, 1 a check failed, 2 wrong use or input, 75 stopped by a signal with everything kept that was
    measured, 128 + the signal's number with nothing to keep, 141 stdout closed by its reader.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with stops_raised():
            code = job() or 0
            if code == _INTERRUPTED:
                raise Stop(2)
            if sys.stdout is not None:
                sys.stdout.flush()
    except IndexcacheError as error:
        code = _fail(error, as_json)
    except Stop as stop:
        code = _fail(InterruptedRunError(stop.number), as_json)
    except KeyboardInterrupt:
        code = _fail(InterruptedRunError(), as_json)
    except BrokenPipeError:
        _abandon_stdout()
        code = _PIPE_CLOSED
    except OSError as error:
        code = _fail(OutputError(f"the result cannot be printed: {error.strerror}", hint=""), as_json=False)
        _abandon_stdout()
    except Exception as error:
        code = _fail(_as_our_error(error), as_json)
    return code


def _fail(error: IndexcacheError, as_json: bool) -> int:
    if not speaks() and not error.shared:
        print(f"error in process {os.environ['RANK']}: {error.line()}", file=sys.stderr, flush=True)
    if speaks():
        print(f"error: {error.line()}", file=sys.stderr, flush=True)
        if as_json and not isinstance(error, GateError):
            print(json.dumps(error.as_json(), indent=2), flush=True)
    return error.exit_code


def _as_our_error(error: Exception) -> IndexcacheError:
    """A wrong option as typer reports it, or what nobody foresaw, as one of our errors."""
    if hasattr(error, "format_message"):
        return SettingError(error.format_message(), hint="--help shows the options")
    if os.environ.get("INDEXCACHE_TRACEBACK"):
        traceback.print_exception(error)
    return IndexcacheError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this should not happen: set INDEXCACHE_TRACEBACK=1, run again and report it",
    )


def _abandon_stdout() -> None:
    """Points stdout elsewhere, so that the interpreter's last flush of it is silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
