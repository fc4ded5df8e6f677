"""Losses of patterns, remembered so that nothing is measured twice, and how two patterns compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        documents: the document that each window is from, equal where windows share one; empty where no two
            windows share one.
    """

    pattern: Pattern
    window_losses: tuple[float, ...]
    documents: tuple[int, ...] = ()

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats per label over all windows; not finite where a window's is not."""
        return _mean(self.window_losses)

    def first(self, windows: int) -> Evaluation:
        """The evaluation on the first ``windows`` windows alone."""
        return Evaluation(self.pattern, self.window_losses[:windows], self.documents[:windows])

    @property
    def finite(self) -> bool:
        """Whether every window's loss is a number."""
        return all(map(math.isfinite, self.window_losses))


@dataclass(frozen=True)
class Difference:
    """A loss difference in nats per label: the mean over windows and its standard error.

    The standard error treats documents as independent samples and windows that share one as
    correlated (the cluster-robust error of a mean); it is None where all windows are linked so.
    """

    delta: float
    standard_error: float | None


def paired_difference(evaluation: Evaluation, baseline: Evaluation) -> Difference:
    """How much higher the loss is than the baseline's on the same windows."""
    pairs = zip(evaluation.window_losses, baseline.window_losses, strict=True)
    return mean_difference([loss - baseline_loss for loss, baseline_loss in pairs], evaluation.documents)


def mean_difference(differences: Sequence[float], documents: Sequence[int] = ()) -> Difference:
    """The mean of differences by window, with its standard error clustered by document.

    With ``r[w] = d[w] - mean``, ``G`` documents and ``n`` windows, the error is
    ``sqrt(G / (G - 1) * sum over documents of (sum of its r[w])^2) / n``.

    Args:
        differences: one value per window.
        documents: the document of each window; empty where no two windows share one.
    """
    mean = _mean(differences)
    clusters: dict[int, list[float]] = {}
    for document, difference in zip(documents or range(len(differences)), differences, strict=True):
        clusters.setdefault(document, []).append(difference - mean)
    count = len(clusters)
    if count < 2:
        return Difference(mean, None)
    # A document's residuals are summed before they are squared: windows that err alike count as one sample.
    squares = math.fsum(math.fsum(cluster) ** 2 for cluster in clusters.values())
    return Difference(mean, math.sqrt(count / (count - 1) * squares) / len(differences))


def noise_floor(first: Evaluation, second: Evaluation) -> float:
    """What rounding does to a mean loss, nats per label, from two measurements of the same pattern.

    The larger of the change of the mean, and of its standard deviation if the windows' changes were
    independent, since a mean of a few may cancel by chance.
    """
    changes = [a - b for a, b in zip(first.window_losses, second.window_losses, strict=True)]
    return max(abs(_mean(changes)), math.sqrt(math.fsum(change * change for change in changes)) / len(changes))


def _mean(values: Sequence[float]) -> float:
    # fsum is exact, so the mean does not depend on the order of the windows; it refuses inf - inf.
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


MeasureWindows = Callable[[Sequence[Pattern], Sequence[int]], "list[tuple[float, ...]]"]
"""Mean loss per label of each pattern on each of the windows named by their numbers."""


class Measurements:
    """Evaluations of patterns on the calibration windows, all of them or the first few.

    Args:
        measure: measures patterns on windows given by number.
        windows: how many there are. Their order is random, so the first few are a fair sample.
        documents: the document that each window is from; empty where no two windows share one.
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
        return [Evaluation(pattern, self._losses[str(pattern)][:count], documents) for pattern in patterns]
