"""What a search asks and a model answers: losses of patterns, window by window, on named groups of windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from .pattern import Pattern

CALIBRATION = "calibration"
HELD_OUT = "heldout"
REFINEMENT = "refinement"
LEARNING = "learning"
PROBES = "probes"
HELD_OUT_PROBES = "heldout_probes"
GROUP_TITLES = {
    CALIBRATION: "calibration",
    HELD_OUT: "held-out",
    REFINEMENT: "refinement",
    LEARNING: "learning",
    PROBES: "calibration probe",
    HELD_OUT_PROBES: "held-out probe",
}


class WindowLoss(NamedTuple):
    """What one pattern costs on one window, summed over its labels; all of it comes of the same logits.

    Args:
        loss: cross entropy of the labels, in nats.
        divergence: ``KL(all full || pattern)`` of the next-token distributions, in nats: the loss increase that
            labels drawn from the model itself would show on average, without the noise of drawing them.
        key_loss: cross entropy weighed by what the long context tells of a label, in nats; NaN where the weights
            were not asked for.
        agreement: labels at which the likeliest token is all full's.
        correct: labels at which the likeliest token is the label.
    """

    loss: float
    divergence: float = math.nan
    key_loss: float = math.nan
    agreement: float = math.nan
    correct: float = math.nan

    def per(self, labels: int) -> WindowLoss:
        """The means over ``labels``."""
        return WindowLoss(*(total / labels for total in self))


class Request(NamedTuple):
    """Patterns, and windows to measure all of them on.

    Args:
        patterns: what to measure.
        windows: by number, in the order in which the losses come.
        group: the name of the windows.
        last_token: measure in another shape, which changes nothing but rounding.
    """

    patterns: Sequence[Pattern]
    windows: Sequence[int]
    group: str = CALIBRATION
    last_token: bool = False


PatternWindowLosses = list[tuple[WindowLoss, ...]]
"""What a request asks for: of each pattern the losses on each window, in the order asked for."""


class Evaluate(Protocol):
    """Measures patterns on named groups of windows, all that one call asks for in one sweep."""

    def __call__(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """The losses that each request asks for."""


class Model(Protocol):
    """What measures losses that nobody has measured yet."""

    def sweep(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """The losses that each request asks for, in one pass over the weights where those have to be fetched."""

    def pieces(self, requests: Sequence[Request]) -> Iterable[Sequence[Request]]:
        """``requests`` in the portions in which they are best measured, alike on all processes."""

    def follow(self, pattern: Pattern) -> None:
        """Patterns measured from now on are mostly made from ``pattern``."""
