"""What a search asks and a model answers: losses of patterns, window by window, on two groups of windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from .pattern import Pattern

CALIBRATION = "calibration"
HELD_OUT = "heldout"
GROUP_TITLES = {CALIBRATION: "calibration", HELD_OUT: "held-out"}


class Evaluate(Protocol):
    """Measures patterns on a named group of windows: summed losses in nats, one per window."""

    def __call__(
        self,
        patterns: Sequence[Pattern],
        group: str,
        windows: Sequence[int] | None = None,
        last_token: bool = False,
    ) -> list[tuple[float, ...]]:
        """Losses in the order of ``patterns``, on all windows or on those named, in that order.

        ``last_token`` measures in another shape, which changes nothing but rounding.
        """


class Model(Evaluate, Protocol):
    """What measures losses that nobody has measured yet."""

    def pieces(self, windows: Sequence[int], patterns: int) -> Iterable[Sequence[int]]:
        """``windows`` in the portions in which they are best measured, alike on all processes."""

    def follow(self, pattern: Pattern) -> None:
        """Patterns measured from now on are mostly made from ``pattern``."""
