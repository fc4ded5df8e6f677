"""Refinement: swap one full site for a shared one while the loss falls."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ...pattern import Pattern
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


def refine(
    measurements: Measurements,
    start: Pattern,
    rounds: int,
    noise_floor: float = 0.0,
    pinned: Collection[int] = (),
    standard_errors: float = STANDARD_ERRORS,
    on_swap: Callable[[Swap], None] = lambda swap: None,
) -> list[Swap]:
    """Swaps while that lowers the loss on all windows by more than ``noise_floor``.

    Each round races all swaps of one full site, other than the first and the pinned, for one shared.

    Args:
        measurements: of the calibration windows.
        start: the pattern to refine.
        rounds: swaps at most.
        noise_floor: the smallest loss decrease that counts, nats per label.
        pinned: sites that stay full.
        standard_errors: of the race.
        on_swap: told of each committed swap.
    """
    swaps: list[Swap] = []
    current = measurements([start])[0]
    while len(swaps) < rounds:
        field = _neighbours(current.pattern, pinned)
        results = race(measurements, [pattern for _, _, pattern in field], current, standard_errors)
        better = [
            Swap(removed, restored, result)
            for (removed, restored, _), result in zip(field, results, strict=True)
            if len(result.windows) == measurements.windows and result.cost < current.cost - noise_floor
        ]
        if not better:
            break
        # The sites decide between equal losses, so that the same losses give the same swap everywhere.
        swap = min(better, key=lambda swap: (swap.evaluation.cost, swap.removed, swap.restored))
        on_swap(swap)
        swaps.append(swap)
        current = swap.evaluation
    return swaps


def _neighbours(pattern: Pattern, pinned: Collection[int]) -> list[tuple[int, int, Pattern]]:
    """All swaps in ``pattern``: the site removed, the site restored, and the pattern after it."""
    shared = [site for site in range(len(pattern)) if not pattern.is_full(site)]
    return [
        (removed, restored, Pattern.from_full(len(pattern), {*pattern.full, restored} - {removed}))
        for removed in candidates(pattern, pinned)
        for restored in shared
    ]
