"""Axes of a picture: from values to places, round numbers along them, and how wide a picture is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A straight line from values to places: ``low`` stands at ``start`` and ``high`` at ``end``, in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where ``value`` stands, in pixels to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Tick:
    """A number along an axis: where it stands, in pixels, and how it is written."""

    place: float
    label: str


def ticks(scale: Scale, count: int, whole: bool = False) -> tuple[Tick, ...]:
    """Round numbers within ``scale``, some ``count`` of them.

    Args:
        scale: the axis.
        count: about how many.
        whole: whether only whole numbers mean something.
    """
    step = _round_step((scale.high - scale.low) / max(1, count))
    step = max(1.0, step) if whole else step
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return tuple(
        Tick(scale(number * step), f"{number * step + 0.0:,.{digits}f}") for number in range(first, last + 1)
    )


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no less than ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Size:
    """How large a picture is drawn, in pixels: ``name`` tells the wide one from that for a phone."""

    name: str
    width: int
    height: int

    @property
    def is_wide(self) -> bool:
        """Whether it is the one for wide screens."""
        return self.name == "wide"


_EDGE = 12.0
WIDE = Size("wide", 760, 400)
NARROW = Size("narrow", 360, 340)


def legend_rows(labels: Sequence[str], size: Size) -> list[list[tuple[int, float]]]:
    """The numbers of ``labels`` in rows as wide as the picture, and where each begins, at 6.7 pixels a letter."""
    rows: list[list[tuple[int, float]]] = [[]]
    start = _EDGE
    for number, label in enumerate(labels):
        width = 6.7 * len(label) + 34
        if rows[-1] and start + width > size.width:
            rows.append([])
            start = _EDGE
        rows[-1].append((number, round(start, 1)))
        start += width
    return rows
