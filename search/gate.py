"""Holds a plan's loss increase to a limit: the upper end of its interval, or the estimate on request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from .intervals import CONFIDENCE, interval
from .losses import Evaluation, loss_increases, paired_difference

GateKind = Literal["interval", "estimate"]


class LossIncrease(Protocol):
    """A loss increase in nats; ``high`` is None where one document gives no interval."""

    @property
    def delta(self) -> float:
        """The estimate."""

    @property
    def high(self) -> float | None:
        """The upper end."""


@dataclass(frozen=True)
class MeasuredIncrease:
    """The loss increase of a pattern over all full, with its interval, in nats per label.

    Args:
        delta: the estimate.
        standard_error: None where one document is all there is.
        low: the lower end; None likewise.
        high: the upper end; None likewise.
    """

    delta: float
    standard_error: float | None
    low: float | None
    high: float | None


def measured_increase(evaluation: Evaluation, baseline: Evaluation, confidence: float) -> MeasuredIncrease:
    """By how much the loss is higher than all full's on the same windows; all full's own is zero for sure."""
    difference = paired_difference(evaluation, baseline)
    if evaluation.pattern == baseline.pattern:
        return MeasuredIncrease(difference.delta, difference.standard_error, 0.0, 0.0)
    ends = interval(loss_increases(evaluation, baseline), evaluation.documents, confidence)
    low, high = (None if math.isinf(end) else end for end in (ends.low, ends.high))
    return MeasuredIncrease(difference.delta, difference.standard_error, low, high)


@dataclass(frozen=True)
class Gate:
    """What of a loss increase is held to a limit.

    Args:
        kind: the upper end of its interval, or the estimate.
        confidence: of the interval.
    """

    kind: GateKind = "interval"
    confidence: float = CONFIDENCE

    def passes(self, increase: LossIncrease, limit: float | None) -> bool | None:
        """Whether a loss increase is at most ``limit``; None where there is no limit.

        One without an interval, as one document gives none, is above any limit.
        """
        if limit is None:
            return None
        end = increase.delta if self.kind == "estimate" else increase.high
        return end is not None and end <= limit

    def failure(self, increase: LossIncrease, limit: float, option: str, subject: str) -> str:
        """What to say of a loss increase that does not pass.

        Args:
            increase: above the limit.
            limit: that ``option`` set.
            option: its name, such as ``--max-delta``.
            subject: what increases, such as ``the plan's loss``.
        """
        estimate = f"{subject} increases by {increase.delta:+.5f}"
        if increase.delta > limit:
            return f"{estimate}, above {option} {limit:g}"
        if increase.high is None:
            return f"{estimate}, but one document gives no upper end to hold to {option} {limit:g}"
        return (
            f"{estimate}, but at {100 * self.confidence:g} % confidence perhaps by {increase.high:+.5f}, "
            f"above {option} {limit:g}"
        )
