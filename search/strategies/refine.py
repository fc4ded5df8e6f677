"""Refinement: from several starts, swap one full site for a shared one while the cost falls for sure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ...pattern import Pattern
from ..intervals import chance_of_no_gain
from ..losses import Evaluation, Measurements
from .greedy import candidates
from .race import STANDARD_ERRORS, race


@dataclass(frozen=True)
class Swap:
    """One committed swap.

    Args:
        removed: the full site that turned shared.
        restored: the shared site that turned full.
        evaluation: the pattern after it, measured on all windows.
    """

    removed: int
    restored: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Descent:
    """Where refinement came to from one start.

    Args:
        name: of the start.
        start: the pattern that it began with, measured on the windows of refinement.
        swaps: in order.
    """

    name: str
    start: Evaluation
    swaps: tuple[Swap, ...]

    @property
    def end(self) -> Evaluation:
        """The pattern after the last swap."""
        return self.swaps[-1].evaluation if self.swaps else self.start


def refine(
    measurements: Measurements,
    starts: Mapping[str, Pattern],
    rounds: int,
    confidence: float,
    pinned: Collection[int] = (),
    standard_errors: float = STANDARD_ERRORS,
    on_swap: Callable[[Swap], None] = lambda swap: None,
) -> list[Descent]:
    """Refines each start; the cheapest end comes first, of equal ones the earlier start's.

    Args:
        measurements: of windows that the search did not use: on its own, the pattern it chose looks too good.
        starts: patterns by name; those that are equal are refined once, under the first name.
        rounds: swaps at most from each start.
        confidence: with which a swap has to be better.
        pinned: sites that stay full.
        standard_errors: of the race.
        on_swap: told of each committed swap.
    """
    names = {pattern: name for name, pattern in reversed(list(starts.items()))}
    first = measurements(list(starts.values()))
    descents = [
        _descend(name, evaluation, measurements, rounds, confidence, pinned, standard_errors, on_swap)
        for name, evaluation in zip(starts, first, strict=True)
        if names[evaluation.pattern] == name and evaluation.finite
    ]
    return sorted(descents, key=lambda descent: descent.end.cost)


def _descend(
    name: str,
    start: Evaluation,
    measurements: Measurements,
    rounds: int,
    confidence: float,
    pinned: Collection[int],
    standard_errors: float,
    on_swap: Callable[[Swap], None],
) -> Descent:
    """Swaps while one is better by a paired test: a race of all, then the cheapest that saw all windows."""
    swaps: list[Swap] = []
    current = start
    while len(swaps) < rounds:
        field = _neighbours(current.pattern, pinned)
        results = race(measurements, [pattern for _, _, pattern in field], current, standard_errors)
        swap = min(
            (
                Swap(removed, restored, result)
                for (removed, restored, _), result in zip(field, results, strict=True)
                if len(result.windows) == measurements.windows and result.finite
            ),
            # The sites decide between equal costs, so that the same costs give the same swap everywhere.
            key=lambda swap: (swap.evaluation.cost, swap.removed, swap.restored),
            default=None,
        )
        if swap is None:
            break
        # The cheapest of many looks cheaper than it is, which the test takes into account.
        doubt = chance_of_no_gain(
            swap.evaluation.window_costs, current.window_costs, current.documents, choices=len(field)
        )
        if doubt > 1 - confidence:
            break
        on_swap(swap)
        swaps.append(swap)
        current = swap.evaluation
    return Descent(name, start, tuple(swaps))


def _neighbours(pattern: Pattern, pinned: Collection[int]) -> list[tuple[int, int, Pattern]]:
    """All swaps in ``pattern``: the site removed, the site restored, and the pattern after it."""
    shared = [site for site in range(len(pattern)) if not pattern.is_full(site)]
    return [
        (removed, restored, Pattern.from_full(len(pattern), {*pattern.full, restored} - {removed}))
        for removed in candidates(pattern, pinned)
        for restored in shared
    ]
