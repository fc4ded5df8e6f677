"""Figures of a plan in words: increases with their intervals, small costs, shares and layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from ...pattern import layer_ranges
from ..plan.schema import MeasuredPattern, PlanStep, ProbeRecord, ProbeScores

NOT_COMPLETE = (
    "the plan is not complete: its baselines and held-out check were not measured; run the search again to go on"
)


class Bounded(Protocol):
    """A loss increase; ``high``, the upper end of its interval, is None where one document gives none."""

    @property
    def high(self) -> float | None:
        """The upper end, in nats."""


def percent(share: float) -> str:
    """``95 %``; decimals only where they are needed."""
    return f"{100 * share:.3g} %"


def stay(chance: float) -> str:
    """In how many draws of the documents the kept layers stay, of which ``chance`` is the least share."""
    whole = math.floor(round(100 * chance, 6))  # rounded down, or fewer draws than said would do
    return "each kept layer stays in " + ("all draws" if whole >= 100 else f"at least {whole} % of draws")


def at_confidence(measured: Iterable[Bounded], confidence: float | None) -> str:
    """What a heading says of the intervals below it: `` (95 %)``, or that one document gives none.

    Args:
        measured: what stands below it.
        confidence: of the intervals; None in a plan of a version that had none.
    """
    if confidence is None:
        return ""
    increases = list(measured)
    bounded = not increases or any(increase.high is not None for increase in increases)
    return f" ({percent(confidence)})" if bounded else " (one document: no interval)"


def nats(value: float) -> str:
    """A cost to four decimals, or to as many, up to seven, as show two digits of it."""
    digits = 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(4, min(7, digits))}f}"


def signed(value: float) -> str:
    """A loss increase with its sign, to four decimals, and zero always as ``+0.0000``."""
    return f"{round(value, 4) + 0.0:+.4f}"


def increase(measured: MeasuredPattern | ProbeRecord | None, confidence: float | None = None) -> str:
    """A loss increase with its interval: ``+0.0240 (0.0040 to 0.0440)``.

    A plan of an older version has a standard error instead, ``+0.0240 ± 0.0098``; where all windows are of one
    document there is neither.

    Args:
        measured: what was measured; None where nothing was.
        confidence: said inside the brackets, ``(95 %: 0.0040 to 0.0440)``, where no heading says it.
    """
    if measured is None:
        return "not measured"
    delta, low, high = measured.delta, measured.low, measured.high
    if low is None or high is None:
        error = measured.standard_error
        return signed(delta) if error is None else f"{signed(delta)} ± {error:.4f}"
    if low == high == delta == 0:
        return "0"
    said = "" if confidence is None else f"{percent(confidence)}: "
    return f"{signed(delta)} ({said}{_unsigned(low)} to {_unsigned(high)})"


def margin(step: PlanStep) -> str:
    """How far the runner-up was behind in what chose, with the standard error of that difference."""
    if step.margin is None:
        return ""
    error = step.margin_standard_error
    return nats(step.margin) if error is None else f"{nats(step.margin)} ± {nats(error)}"


def answers(scores: ProbeScores | None) -> str:
    """The loss of probes' answers and the share predicted right: ``5.29, 17 %``."""
    return "" if scores is None else f"{scores.loss:.2f}, {100 * scores.accuracy:.0f} %"


def layers(numbers: Sequence[int]) -> str:
    """``layer 3``, or ``layers 3-5, 9``, ascending."""
    return f"layer{'s' if len(numbers) > 1 else ''} {layer_ranges(sorted(numbers))}"


def _unsigned(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"
