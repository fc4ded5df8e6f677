"""Holds a plan's loss increase to a limit: the upper end of its interval, or the estimate where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ..intervals import CONFIDENCE

GateKind = Literal["interval", "estimate"]


class LossIncrease(Protocol):
    """A loss increase in nats; ``low`` to ``high`` is its interval, None where it has none."""

    @property
    def delta(self) -> float: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


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
