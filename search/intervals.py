"""Placeholder until merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .losses import Difference, Evaluation


class Interval(NamedTuple):
    low: float
    high: float


def difference_interval(difference: Difference, evaluation: Evaluation, confidence: float) -> Interval | None:
    if difference.standard_error is None:
        return None
    return Interval(difference.delta - 2 * difference.standard_error, difference.delta + 2 * difference.standard_error)
