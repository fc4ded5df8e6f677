"""Losses of patterns, remembered so that nothing is measured twice, and how two patterns compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..evaluate import Request, WindowLoss
from ..pattern import Pattern
from .objective import ScoredWindow

Measure = Callable[[Sequence[Pattern]], "list[Evaluation]"]
"""Measures patterns on one fixed set of windows."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one pattern, kept per window so that patterns compare in pairs.

    Args:
        pattern: what was measured.
        windows: per label, one value per window; all windows have the same number of labels.
        documents: the document that each window is from, equal where windows share one; empty where no two
            windows share one.
    """

    pattern: Pattern
    windows: tuple[ScoredWindow, ...]
    documents: tuple[int, ...] = ()

    @classmethod
    def of_losses(
        cls, pattern: Pattern, window_losses: Sequence[float], documents: tuple[int, ...] = ()
    ) -> Evaluation:
        """An evaluation in which the mean cross entropy of each window is what chooses."""
        return cls(pattern, tuple(ScoredWindow(loss, WindowLoss(loss)) for loss in window_losses), documents)

    @property
    def window_losses(self) -> tuple[float, ...]:
        """Mean cross entropy of each window in nats per label."""
        return tuple(window.losses.loss for window in self.windows)

    @property
    def window_costs(self) -> tuple[float, ...]:
        """What chooses, of each window: see ``search.objective``."""
        return tuple(window.cost for window in self.windows)

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats per label over all windows; not finite where a window's is not."""
        return _mean(self.window_losses)

    @property
    def cost(self) -> float:
        """What chooses, over all windows; not finite where a window's is not."""
        return _mean(self.window_costs)

    def mean(self, figure: str) -> float | None:
        """The mean of a figure of ``WindowLoss`` over all windows; None where it was not measured."""
        mean = _mean([getattr(window.losses, figure) for window in self.windows])
        return mean if math.isfinite(mean) else None

    def first(self, windows: int) -> Evaluation:
        """The evaluation on the first ``windows`` windows alone."""
        return Evaluation(self.pattern, self.windows[:windows], self.documents[:windows])

    def only(self, windows: Sequence[int]) -> Evaluation:
        """The evaluation on the windows of these numbers alone."""
        documents = tuple(self.documents[window] for window in windows) if self.documents else ()
        return Evaluation(self.pattern, tuple(self.windows[window] for window in windows), documents)

    @property
    def finite(self) -> bool:
        """Whether every window's loss and cost is a number."""
        return all(math.isfinite(window.cost) and math.isfinite(window.losses.loss) for window in self.windows)


@dataclass(frozen=True)
class Difference:
    """A loss difference in nats per label: the mean over windows and its standard error.

    The standard error treats documents as independent samples and windows that share one as
    correlated (see ``mean_difference``); it is None where all windows are linked so.
    """

    delta: float
    standard_error: float | None


def loss_increases(evaluation: Evaluation, baseline: Evaluation) -> list[float]:
    """By how much the loss of each window is higher than the baseline's."""
    pairs = zip(evaluation.window_losses, baseline.window_losses, strict=True)
    return [loss - baseline_loss for loss, baseline_loss in pairs]


def cost_increases(evaluation: Evaluation, other: Evaluation) -> list[float]:
    """By how much each window is dearer than under the other pattern, in what chooses."""
    pairs = zip(evaluation.window_costs, other.window_costs, strict=True)
    return [cost - other_cost for cost, other_cost in pairs]


def paired_difference(evaluation: Evaluation, baseline: Evaluation) -> Difference:
    """How much higher the loss is than the baseline's on the same windows."""
    return mean_difference(loss_increases(evaluation, baseline), evaluation.documents)


def paired_cost(evaluation: Evaluation, other: Evaluation) -> Difference:
    """How much dearer a pattern is than another on the same windows, in what chooses."""
    return mean_difference(cost_increases(evaluation, other), evaluation.documents)


def mean_difference(differences: Sequence[float], documents: Sequence[int] = ()) -> Difference:
    """The mean of differences by window, with its standard error clustered by document.

    The error is the delete-one-document jackknife: how far the mean moves when a document's windows are left
    out, ``mean - mean without g = R[g] / (n - n[g])``, where ``R[g]`` sums ``d[w] - mean`` over its ``n[g]`` of
    all ``n`` windows. With ``G`` documents it is ``sqrt((G - 1) / G * sum over g of (R[g] / (n - n[g]))^2)``
    (CV3 of MacKinnon, Nielsen and Webb, 2023; HC3 of MacKinnon and White, 1985, for clusters). Where documents
    have equally many windows, that is the usual ``sqrt(G / (G - 1) * sum of R[g]^2) / n``. Where one has most of
    them, the usual error, and Bell and McCaffrey's CR2 too, come out several times too small: the mean follows
    that document, and so its residuals are small.

    Args:
        differences: one value per window.
        documents: the document of each window; empty where no two windows share one.
    """
    mean, n = _mean(differences), len(differences)
    clusters: dict[int, list[float]] = {}
    for document, difference in zip(documents or range(n), differences, strict=True):
        clusters.setdefault(document, []).append(difference - mean)
    count = len(clusters)
    if count < 2:
        return Difference(mean, None)
    # A document's residuals are summed before they are squared: windows that err alike count as one sample.
    squares: dict[int, list[float]] = {}
    for residuals in clusters.values():
        squares.setdefault(len(residuals), []).append(math.fsum(residuals) ** 2)
    # Integers until the division, which is then exact to the last bit: equal documents give G / (G - 1).
    weighted = [
        (count - 1) * n * n / (count * (n - size) ** 2) * math.fsum(of_size) for size, of_size in squares.items()
    ]
    return Difference(mean, math.sqrt(math.fsum(weighted)) / n)


def effective_documents(documents: Sequence[int], windows: int) -> float:
    """How many documents of equally many windows tell as much: ``n^2 / sum of n[g]^2`` (Kish, 1965).

    Args:
        documents: the document of each window; empty where no two windows share one.
        windows: how many there are.
    """
    sizes = Counter(documents).values() if documents else [1] * windows
    return windows * windows / sum(size * size for size in sizes)


def noise_floor(first: Evaluation, second: Evaluation) -> float:
    """What rounding does to a mean cost, per label, from two measurements of the same pattern.

    The larger of the change of the mean, and of its standard deviation if the windows' changes were
    independent, since a mean of a few may cancel by chance.
    """
    changes = [a - b for a, b in zip(first.window_costs, second.window_costs, strict=True)]
    return max(abs(_mean(changes)), math.sqrt(math.fsum(change * change for change in changes)) / len(changes))


def _mean(values: Sequence[float]) -> float:
    # fsum is exact, so the mean does not depend on the order of the windows; it refuses inf - inf.
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


MeasureWindows = Callable[[Sequence[Request]], "list[list[tuple[ScoredWindow, ...]]]"]
"""One sweep: of each request, what was measured of each of its patterns on its windows."""


class Look(NamedTuple):
    """Patterns, and on how many of the first windows they are looked at; None for all."""

    patterns: Sequence[Pattern]
    windows: int | None = None


class Measurements:
    """Evaluations of patterns on the calibration windows, all of them or the first few.

    Args:
        measure: measures patterns on windows given by number, all that it is asked for in one sweep.
        windows: how many there are. Their order is random, so the first few are a fair sample.
        documents: the document that each window is from; empty where no two windows share one.
        known: what was measured before of the same windows, which is added to.
    """

    def __init__(
        self,
        measure: MeasureWindows,
        windows: int,
        documents: Sequence[int] = (),
        known: dict[str, tuple[ScoredWindow, ...]] | None = None,
    ) -> None:
        self.windows = windows
        self._documents = tuple(documents)
        self._measure = measure
        self._measured = {} if known is None else known

    def __call__(self, patterns: Sequence[Pattern], windows: int | None = None) -> list[Evaluation]:
        """The patterns on the first ``windows`` windows, all by default."""
        return self.together([Look(patterns, windows)])[0]

    def together(self, looks: Sequence[Look]) -> list[list[Evaluation]]:
        """The patterns of each look on its first windows; what is not known yet is measured in one sweep.

        Looks are measured in their order, so that what is likeliest to be gone on from comes last: its states are
        the last that are kept.
        """
        counts = [self.windows if look.windows is None else min(look.windows, self.windows) for look in looks]
        requests = self._missing(zip(looks, counts, strict=True))
        for request, measured in zip(requests, self._measure(requests) if requests else (), strict=True):
            for pattern, scores in zip(request.patterns, measured, strict=True):
                self._measured[str(pattern)] = self._measured.get(str(pattern), ()) + scores
        return [
            [
                Evaluation(pattern, self._measured[str(pattern)][:count], self._documents[:count])
                for pattern in look.patterns
            ]
            for look, count in zip(looks, counts, strict=True)
        ]

    def _missing(self, looks: Iterable[tuple[Look, int]]) -> list[Request]:
        """What was not measured yet of looks at so many windows, each pattern and window once."""
        known: dict[Pattern, int] = {}
        requests: list[Request] = []
        for look, count in looks:
            lacking: dict[int, list[Pattern]] = {}
            for pattern in dict.fromkeys(look.patterns):
                first = known.setdefault(pattern, len(self._measured.get(str(pattern), ())))
                if first < count:
                    lacking.setdefault(first, []).append(pattern)
                    known[pattern] = count
            # Patterns that lack the same windows go together: they share the layers before they differ.
            requests += [Request(group, range(first, count)) for first, group in lacking.items()]
        return requests
