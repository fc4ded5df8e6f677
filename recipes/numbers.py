"""Numbers as people write them in options and recipes: lists with commas, fractions, per cents, sizes in bytes."""

from __future__ import annotations

import re
from decimal import Decimal

from ..errors import SettingError

# With a point or a comma, and of bounded length: no digits without end reach a conversion.
_DECIMAL = r"[+-]?(?:\d{1,40}(?:[.,]\d{0,40})?|[.,]\d{1,40})(?:e[+-]?\d{1,3})?"
_SIZE = re.compile(r"(\d{1,15}(?:[.,]\d{1,15})?)\s*([kmgtp])(i?)b", re.IGNORECASE)
_LARGEST = 10**18


def lengths(text: str) -> list[int]:
    """``8k,32k`` as tokens; k is 1024.

    Raises:
        SettingError: not lengths.
    """
    tokens = [length(part) for part in text.split(",")]
    if None in tokens:
        raise SettingError(f"--context is {text!r}", hint="give lengths in tokens, e.g. 8k,32k,131072")
    return [count for count in tokens if count is not None]


def length(text: str) -> int | None:
    """``8k`` or ``8192`` as tokens; k is 1024. None where it is no length."""
    written = text.lower().replace(" ", "")
    digits, unit = (written[:-1], 1024) if written.endswith("k") else (written, 1)
    if not digits.isdecimal() or len(digits) > 12 or not 2 <= int(digits) * unit <= 1 << 30:
        return None
    return int(digits) * unit


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


def fraction(text: str, option: str = "keep") -> float:
    """The share of sites that stay full, as ``0.25``, ``0,25``, ``25%`` or ``1/4``.

    Raises:
        SettingError: none of these; names ``option``.
    """
    literal, example = text.strip().lower(), "a fraction above 0 and at most 1, e.g. 0.25, 25% or 1/4"
    if match := re.fullmatch(rf"({_DECIMAL})\s*%", literal):
        return float(Decimal(match[1].replace(",", ".")) / 100)
    if match := re.fullmatch(r"(\d{1,9})\s*/\s*(\d{1,9})", literal):
        if not int(match[2]):
            raise SettingError(f"--{option} is {text!r}, which divides by 0", hint=f"give {example}")
        return int(match[1]) / int(match[2])
    return decimal(option, text, example)


def byte_size(option: str, text: str, least: int = 1) -> int:
    """``80GB``, ``1.5TB`` or ``64GiB`` as bytes; a G is 1000 to the third, a Gi 1024 to the third.

    Raises:
        SettingError: no such size, or less than ``least``; names ``option``.
    """
    size = _bytes(text, least)
    if size is None:
        raise SettingError(f"--{option} is {text!r}", hint="give a size with its unit, e.g. 80GB, 1TB or 64GiB")
    return size


def byte_rate(option: str, text: str) -> int:
    """``6GB/s`` or ``900MB/s`` as bytes a second; ``200Gb/s`` is of bits, and refused.

    Raises:
        SettingError: no such rate; names ``option``.
    """
    size = re.fullmatch(r"(.+?)\s*/\s*s", text.strip(), re.IGNORECASE)
    rate = _bytes(size[1]) if size else None
    if size is not None and re.search("[KMGTP]b$", size[1]):
        raise SettingError(
            f"--{option} is {text!r}, which is in bits",
            hint="give bytes a second, an eighth of it, e.g. 25GB/s for 200Gb/s",
        )
    if rate is None:
        raise SettingError(f"--{option} is {text!r}", hint="give bytes a second, e.g. 6GB/s or 900MB/s")
    return rate


def devices(option: str, text: str) -> tuple[int, int]:
    """``8x80GB`` as how many devices and the bytes of one; ``80GB`` is one device.

    Raises:
        SettingError: neither; names ``option``.
    """
    match = re.fullmatch(r"(?:(\d{1,6})\s*[x*]\s*)?(.+)", text.strip(), re.IGNORECASE)
    count, size = (int(match[1] or 1), _bytes(match[2])) if match else (0, None)
    if not count or size is None:
        raise SettingError(
            f"--{option} is {text!r}", hint="give a number of GPUs and the memory of one, e.g. 8x80GB or 1x141GB"
        )
    return count, size


def _bytes(text: str, least: int = 1) -> int | None:
    """Bytes of a size with its unit; None where it is none, less than ``least``, or more than any machine has."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    unit = (1024 if match[3] else 1000) ** ("kmgtp".index(match[2].lower()) + 1)
    size = int(Decimal(match[1].replace(",", ".")) * unit)
    return size if least <= size <= _LARGEST else None
