"""Reads small documents, JSON first of all, that anyone may have written: bounded, unambiguous, safe to show."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import IndexcacheError, escaped, one_line, steers
from .files import refuse_pointer

if TYPE_CHECKING:
    from pydantic import ValidationError

Kind: TypeAlias = type[IndexcacheError]
DEEPEST = 32
LONGEST_NUMBER = 40


def read_bytes(path: Path, kind: Kind, largest: int) -> bytes:
    """The content of a regular file; never waits for a pipe, nor reads a device without end.

    Raises:
        FileNotFoundError: there is none.
        IndexcacheError: of ``kind``: no regular file, larger than ``largest``, or unreadable.
    """
    try:
        # Opening a pipe that nobody writes to would wait forever without O_NONBLOCK.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise kind(f"{str(path)!r} is no regular file", hint="a file belongs there")
            # One byte more than is allowed: a file may grow between fstat and read.
            content = file.read(largest + 1) if status.st_size <= largest else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{str(path)!r} cannot be read: {reason}") from error
    if max(status.st_size, len(content)) > largest:
        size = f"{largest >> 20} MiB" if largest >> 20 else f"{largest >> 10} KiB"
        raise kind(f"{str(path)!r} is larger than {size}, which is more than such a file takes")
    refuse_pointer(path, kind)
    return content


def read_json(path: Path, kind: Kind, largest: int) -> Any:
    """The JSON document in ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        IndexcacheError: of ``kind``: unreadable, not JSON, a key twice, a number or a depth beyond reason, or text
            that a terminal cannot be shown.
    """
    return read_document(path, kind, largest, "JSON", parse_json)


def read_document(path: Path, kind: Kind, largest: int, language: str, parse: Callable[[str], Any]) -> Any:
    """The document in ``path``, written in a ``language`` that ``parse`` reads or raises ``ValueError`` for.

    Raises:
        FileNotFoundError: there is no such file.
        IndexcacheError: of ``kind``, as for ``read_json``.
    """
    content = read_bytes(path, kind, largest)
    try:
        document = parse(content.decode("utf-8-sig"))
        check_showable(document)
    except UnicodeDecodeError as error:
        raise kind(f"{str(path)!r} is not UTF-8: byte {error.start}", hint="save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise kind(f"{str(path)!r} is not {language} that can be read: {reason}") from error
    return document


def parse_json(text: str) -> Any:
    """``text`` as JSON of which nothing can be read in two ways.

    Raises:
        ValueError: not JSON, a key twice, NaN, or a number of absurd length.
        RecursionError: nested too deep.
    """
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_short_int)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"key {name!r} is given twice")
        members[name] = value
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _short_int(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def check_showable(document: Any) -> None:
    """Refuses a document nested beyond reason, or with text that would do more to a terminal than appear on it.

    Raises:
        ValueError: names the field.
    """
    pending: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while pending:
        place, value = pending.pop()
        if len(place) > DEEPEST:
            raise ValueError("nested too deep")
        if isinstance(value, dict):
            for name in value:
                _check_text(str(name), (*place, "a key"))
            pending += [((*place, str(name)), member) for name, member in value.items()]
        elif isinstance(value, list):
            pending += [((*place, str(number)), element) for number, element in enumerate(value)]
        elif isinstance(value, str):
            _check_text(value, place)


def _check_text(text: str, place: tuple[str, ...]) -> None:
    # Most text is printable throughout: then no character needs a look.
    if not text.isprintable() and (character := next(filter(steers, text), None)):
        raise ValueError(f"field {'.'.join(place) or 'of the whole'} holds the character {escaped(character)}")


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The first field that a document has wrong, by its dotted path, and what is wrong with it."""
    first = error.errors(include_url=False, include_context=False)[0]
    return one_line(".".join(map(str, first["loc"]))), one_line(first["msg"].removeprefix("Value error, "))
