"""Lists of numbers as options give them, with commas."""

from __future__ import annotations

from .errors import SettingError


def lengths(text: str) -> list[int]:
    """``8k,32k`` as tokens; k is 1024.

    Raises:
        SettingError: not lengths.
    """
    found = []
    for each in text.lower().replace(" ", "").split(","):
        digits, unit = (each[:-1], 1024) if each.endswith("k") else (each, 1)
        if not digits.isdecimal() or not 2 <= int(digits) * unit <= 1 << 30:
            raise SettingError(f"--context is {text!r}", hint="give lengths in tokens, e.g. 8k,32k,131072")
        found.append(int(digits) * unit)
    return found


def numbers(option: str, text: str | None) -> list[int] | None:
    """``0,12`` as numbers, None for None.

    Raises:
        SettingError: not whole numbers; names ``option``.
    """
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise SettingError(
            f"--{option} is {text!r}", hint="give whole numbers with commas, e.g. 20,20,21"
        ) from None
