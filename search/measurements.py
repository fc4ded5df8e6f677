"""Remembers every window's loss under every pattern, so that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..pattern import Pattern
from .evaluation import Evaluation

MeasureWindows = Callable[[Sequence[Pattern], Sequence[int]], "list[tuple[float, ...]]"]
"""Mean loss per label of each pattern on each of the windows named by their numbers."""


class Measurements:
    """Evaluations of patterns on the calibration windows, all of them or the first few.

    Args:
        measure: measures patterns on windows given by number.
        windows: how many there are. Their order is random, so the first few are a fair sample.
        documents: the document that each window is from; empty where each is from its own.
    """

    def __init__(self, measure: MeasureWindows, windows: int, documents: Sequence[int] = ()) -> None:
        self.windows = windows
        self._documents = tuple(documents)
        self._measure = measure
        self._losses: dict[str, tuple[float, ...]] = {}

    def __call__(self, patterns: Sequence[Pattern], windows: int | None = None) -> list[Evaluation]:
        """The patterns on the first ``windows`` windows, all by default."""
        count = self.windows if windows is None else min(windows, self.windows)
        missing: dict[int, list[Pattern]] = {}
        for pattern in dict.fromkeys(patterns):
            known = len(self._losses.get(str(pattern), ()))
            if known < count:
                missing.setdefault(known, []).append(pattern)
        # Patterns that lack the same windows go together: they share the layers before they differ.
        for known, group in missing.items():
            for pattern, losses in zip(group, self._measure(group, range(known, count)), strict=True):
                self._losses[str(pattern)] = self._losses.get(str(pattern), ()) + losses
        documents = self._documents[:count]
        return [Evaluation(each, self._losses[str(each)][:count], documents) for each in patterns]
