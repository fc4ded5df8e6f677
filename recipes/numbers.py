"""Numbers as people write them in options and recipes: lists with commas, fractions, per cents."""

from __future__ import annotations

import re
from decimal import Decimal

from ..errors import SettingError

# With a point or a comma, and of bounded length: no digits without end reach a conversion.
_DECIMAL = r"[+-]?(?:\d{1,40}(?:[.,]\d{0,40})?|[.,]\d{1,40})(?:e[+-]?\d{1,3})?"


def lengths(text: str) -> list[int]:
    """``8k,32k`` as tokens; k is 1024.

    Raises:
        SettingError: not lengths.
    """
    tokens = []
    for length in text.lower().replace(" ", "").split(","):
        digits, unit = (length[:-1], 1024) if length.endswith("k") else (length, 1)
        if not digits.isdecimal() or not 2 <= int(digits) * unit <= 1 << 30:
            raise SettingError(f"--context is {text!r}", hint="give lengths in tokens, e.g. 8k,32k,131072")
        tokens.append(int(digits) * unit)
    return tokens


def numbers(option: str, text: str) -> list[int]:
    """``0,12`` as numbers.

    Raises:
        SettingError: not whole numbers; names ``option``.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise SettingError(
            f"--{option} is {text!r}", hint="give whole numbers with commas, e.g. 20,20,21"
        ) from None


def window_count(text: str) -> int | str:
    """``32`` as a number of windows, or ``auto``.

    Raises:
        SettingError: neither.
    """
    written = text.strip().lower()
    if written == "auto":
        return written
    if not written.isdecimal() or not 1 <= int(written[:9]) <= 1_000_000:
        raise SettingError(f"--windows is {text!r}", hint="give a number of windows, e.g. 32, or auto")
    return int(written)


def decimal(option: str, text: str, example: str) -> float:
    """``0.25`` or ``0,25`` as a number.

    Raises:
        SettingError: no number; names ``option`` and shows an ``example``.
    """
    literal = text.strip().lower()
    if not re.fullmatch(rf"{_DECIMAL}|[+-]?(?:inf|nan)", literal):
        raise SettingError(f"--{option} is {text!r}", hint=f"give {example}")
    return float(literal.replace(",", "."))


def fraction(text: str) -> float:
    """The share of sites that stay full, as ``0.25``, ``0,25``, ``25%`` or ``1/4``.

    Raises:
        SettingError: none of these.
    """
    literal, example = text.strip().lower(), "a fraction above 0 and at most 1, e.g. 0.25, 25% or 1/4"
    if match := re.fullmatch(rf"({_DECIMAL})\s*%", literal):
        return float(Decimal(match[1].replace(",", ".")) / 100)
    if match := re.fullmatch(r"(\d{1,9})\s*/\s*(\d{1,9})", literal):
        if not int(match[2]):
            raise SettingError(f"--keep is {text!r}, which divides by 0", hint=f"give {example}")
        return int(match[1]) / int(match[2])
    return decimal("keep", text, example)
