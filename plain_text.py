"""Text of unknown origin, made safe to show: one line, with nothing that steers a terminal."""

from __future__ import annotations

import codecs
import json
import os
import re
import textwrap
import unicodedata
from typing import TextIO

# Controls, invisible ones such as those that turn the direction of reading, half characters, line ends.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LONGEST = 2000
# What remains readable where a terminal has no Unicode.
_SPELLED = {"±": "+/-", "…": "..."}


def steers(character: str) -> bool:
    """Whether a terminal would do something else with ``character`` than show it."""
    return unicodedata.category(character) in _STEERING


def one_line(text: str) -> str:
    """``text`` on one line: white space joined, what does not print escaped, the middle of the longest cut."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    # Not str.split, which takes controls such as FS for white space and would hide them.
    text = re.sub(r"[ \t\r\n]+", " ", text).strip(" ")
    return "".join(each if each.isprintable() else escaped(each) for each in text)


def columns(stream: TextIO) -> int | None:
    """How many columns the terminal has that ``stream`` writes to; None where it is none."""
    try:
        if not stream.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        width = (
            int(given) if given.isdecimal() and len(given) < 6 else os.get_terminal_size(stream.fileno()).columns
        )
    except (OSError, ValueError):  # closed, or a terminal in name only
        return 80
    return width or 80


def wrapped(text: str, stream: TextIO) -> str:
    """``text`` in lines that end at words, as wide as the terminal; unchanged where ``stream`` is none.

    A path or a pattern is never broken, so that it can be copied.
    """
    width = columns(stream)
    if width is None or len(text) <= width:
        return text
    return textwrap.fill(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def escaped(character: str) -> str:
    """``character`` in ASCII as JSON spells it, so that a document stays one: ``\\u001b``."""
    return json.dumps(character)[1:-1]


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_SPELLED.get(each, escaped(each)) for each in lost), error.end


def spell_out() -> str:
    """The name of the way in which streams write what their encoding lacks: ``+/-`` for ``±``, else escaped."""
    codecs.register_error("indexcache-spelled", _spell)
    return "indexcache-spelled"
