"""How the program ends: errors as one line or one JSON document, exit codes, signals and closed pipes."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from .errors import GateError, IndexcacheError, InterruptedRunError, OutputError, SettingError
from .launching import speaks
from .plain_text import wrapped
from .signals import Stop, stops_raised
from .streams import abandon, prepare_streams, result_alone

# The command line's library turns an interrupt into this code.
_INTERRUPTED, _PIPE_CLOSED = 130, 141
_STREAM_FAILS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ENXIO)


def exit_code_of(job: Callable[[], int | None], as_json: bool, restore: bool = True) -> int:
    """Runs ``job`` and tells of whatever ends it.

    0 done, 1 a check failed, 2 wrong use or input, 75 stopped by a signal with everything kept that was
    measured, 128 + the signal's number with nothing to keep, 141 stdout closed by its reader.

    Args:
        job: what to run; returns an exit code, or None for 0.
        as_json: whether errors are printed as documents too.
        restore: see ``signals.stops_raised``.
    """
    prepare_streams()
    with result_alone(restore):
        return _ended(job, as_json, restore)


def _ended(job: Callable[[], int | None], as_json: bool, restore: bool) -> int:
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
    except (BrokenPipeError, SystemExit) as left:
        # typer exits with 1 there, which is the code of a failed check.
        if isinstance(left, SystemExit) and not isinstance(left.__context__, BrokenPipeError):
            raise
        abandon(sys.stdout)
        code = _PIPE_CLOSED
    except Exception as error:
        ours = _as_our_error(error)
        code = _fail(ours, as_json and not isinstance(ours, OutputError))
        if isinstance(ours, OutputError):
            abandon(sys.stdout)
    return code


def _fail(error: IndexcacheError, as_json: bool) -> int:
    # Where neither stream takes it, the exit code still says it.
    tells = speaks() or error.alone
    with suppress(OSError):
        if not tells and not error.shared:
            print(f"error in process {os.environ.get('RANK', '')}: {error.line()}", file=sys.stderr, flush=True)
        if tells:
            print(wrapped(f"error: {error.line()}", sys.stderr), file=sys.stderr, flush=True)
    if tells and as_json and not isinstance(error, GateError):
        try:
            print(json.dumps(error.as_json(), indent=2), flush=True)
        except OSError:
            abandon(sys.stdout)
    return error.exit_code


def _as_our_error(error: Exception) -> IndexcacheError:
    """A wrong option as typer reports it, or what nobody foresaw, as one of our errors."""
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
