"""A mix of requests, as the user writes it: lengths with their shares, or a histogram in a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingError, one_line
from ..recipes.numbers import length
from ..search.price.price import Request

_LARGEST_FILE = 16 << 20
_MOST_LINES = 100_000
_MOST_OUTPUT = 1 << 24
_HINT = "give lengths and how many requests have them, e.g. 8k:70,128k:30, or a CSV file with length,count"
_COLUMNS = "a line is length,count or length,count,output tokens, e.g. 8192,70"


@dataclass(frozen=True)
class _Kind:
    """Requests of one length, as they were written; ``output`` is None where it is not said."""

    length: int
    count: float
    output: int | None


def requests_of(text: str, output: int) -> list[Request]:
    """The requests that ``--lengths`` names: ``8k:70,128k:30``, or a CSV file.

    Args:
        text: as written.
        output: tokens that are written for those of which it is not said.

    Raises:
        SettingError: neither; names the line of a file.
    """
    kinds = _mix(text)
    if kinds is None:
        kinds = list(_histogram(Path(text)))
    total = sum(kind.count for kind in kinds)
    if not math.isfinite(total) or total <= 0:
        raise SettingError("--lengths names no requests: their counts sum to 0", hint=_HINT)
    return [Request(kind.length, kind.count / total, kind.output or output) for kind in kinds if kind.count]


def _mix(text: str) -> list[_Kind] | None:
    """``8k:70,128k:30``, or ``8k`` alone; None where it is the name of a file.

    Raises:
        SettingError: a mix that is none.
    """
    parts = [part.partition(":") for part in text.split(",")]
    if not any(length(part[0]) for part in parts):
        return None
    kinds = []
    for written, colon, share in parts:
        tokens, count = length(written), _number(share) if colon else 1.0
        if tokens is None or count is None:
            raise SettingError(f"--lengths is {text!r}", hint=_HINT)
        kinds.append(_Kind(tokens, count, None))
    return kinds


def _number(text: str) -> float | None:
    """A count or a share, 0 or more; None where it is none."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _histogram(path: Path) -> Iterator[_Kind]:
    """The lines of a CSV file; a first line without numbers names the columns.

    Raises:
        SettingError: it cannot be read, or a line of it says no length and count.
    """
    lines = _lines(path)
    dialect = next((mark for mark in ",;\t" if mark in lines[0]), ",") if lines else ","
    kinds = 0
    for number, row in enumerate(csv.reader(lines, delimiter=dialect), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and not any(character.isdigit() for character in lines[0])):
            continue
        kinds += 1
        yield _kind(cells, f"{str(path)!r}, line {number}")
    if not kinds:
        raise SettingError(f"{str(path)!r} has no line with a length", hint=_COLUMNS)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SettingError(f"{str(path)!r} is larger than 16 MB", hint="give a histogram: a line a length")
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SettingError(
            f"--lengths is {str(path)!r}, which is no mix of lengths and no file", hint=_HINT
        ) from None
    except UnicodeDecodeError:
        raise SettingError(f"{str(path)!r} is no text in UTF-8", hint=_COLUMNS) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(f"{str(path)!r} cannot be read: {reason}", hint=_HINT) from None
    if len(lines) > _MOST_LINES:
        raise SettingError(
            f"{str(path)!r} has more than {_MOST_LINES:,} lines", hint="give a histogram: a line a length"
        )
    return lines


def _kind(cells: list[str], place: str) -> _Kind:
    if not 2 <= len(cells) <= 3:
        raise SettingError(f"{place}: {one_line(','.join(cells))[:80]!r} has {len(cells)} columns", hint=_COLUMNS)
    tokens, count = length(cells[0]), _number(cells[1])
    if tokens is None:
        raise SettingError(f"{place}: {one_line(cells[0])[:80]!r} is no length in tokens", hint=_COLUMNS)
    if count is None:
        raise SettingError(f"{place}: {one_line(cells[1])[:80]!r} is no number of requests", hint=_COLUMNS)
    output = None
    if len(cells) == 3 and cells[2]:
        if not cells[2].isdecimal() or not 1 <= int(cells[2][:12]) <= _MOST_OUTPUT:
            raise SettingError(
                f"{place}: {one_line(cells[2])[:80]!r} is no number of output tokens", hint=_COLUMNS
            )
        output = int(cells[2])
    return _Kind(tokens, count, output)
