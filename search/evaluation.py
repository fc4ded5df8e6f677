"""What was measured of a pattern, and how two patterns compare on the same windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import stdev

from ..pattern import Pattern

Measure = Callable[[Sequence[Pattern]], "list[Evaluation]"]
"""Measures patterns on one fixed set of windows."""


@dataclass(frozen=True)
class Evaluation:
    """The losses of one pattern, kept per window so that patterns compare in pairs.

    Args:
        pattern: what was measured.
        window_losses: mean cross entropy in nats per label, one value per window; all windows have
            the same number of labels.
    """

    pattern: Pattern
    window_losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats per label over all windows; not finite where a window's is not."""
        return _mean(self.window_losses)

    @property
    def finite(self) -> bool:
        """Whether every window's loss is a number."""
        return all(map(math.isfinite, self.window_losses))


@dataclass(frozen=True)
class Difference:
    """A loss difference in nats per label: the mean over windows and its standard error.

    The standard error treats windows as independent samples; it is None for a single window.
    """

    delta: float
    standard_error: float | None


def paired_difference(evaluation: Evaluation, baseline: Evaluation) -> Difference:
    """How much higher the loss is than the baseline's on the same windows."""
    differences = [a - b for a, b in zip(evaluation.window_losses, baseline.window_losses, strict=True)]
    spread = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Difference(_mean(differences), spread)


def noise_floor(first: Evaluation, second: Evaluation) -> float:
    """The largest change of a window's loss between two measurements of the same pattern."""
    return max(abs(a - b) for a, b in zip(first.window_losses, second.window_losses, strict=True))


def _mean(values: Sequence[float]) -> float:
    # fsum is exact, so the mean does not depend on the order of the windows; it refuses inf - inf.
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
