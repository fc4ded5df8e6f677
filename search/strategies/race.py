"""Racing: patterns that are clearly worse leave after a few windows, the others see all of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...pattern import Pattern
from ..intervals import clearly_worse, document_sizes
from ..losses import Evaluation, Measurements, paired_cost

FIRST_WINDOWS = 4
STANDARD_ERRORS = 2.0


def race(
    measurements: Measurements,
    patterns: Sequence[Pattern],
    rival: Evaluation | None = None,
    standard_errors: float = STANDARD_ERRORS,
) -> list[Evaluation]:
    """Measures ``patterns`` on 4, 8, 16, ... windows and drops one when it is clearly worse than the best.

    Clearly means that its loss, paired on the same windows, is higher by more than ``standard_errors``
    standard errors of a normal distribution are worth on as many documents (see ``clearly_worse``); a loss that
    is no number is always worse. Whatever stays has seen every window. A pattern alone has nothing to race and
    sees them at once.

    Args:
        measurements: of the calibration windows.
        patterns: the field.
        rival: a pattern outside the field, measured on all windows, that it has to beat as well.
        standard_errors: how much worse is clearly worse.

    Returns:
        One evaluation per pattern in their order, on as many windows as it saw.
    """
    seen: dict[Pattern, Evaluation] = {}
    alive, count = list(patterns), min(FIRST_WINDOWS, measurements.windows)
    if rival is None and len(alive) == 1:
        count = measurements.windows
    while alive:
        measured = measurements(alive, count)
        seen.update(zip(alive, measured, strict=True))
        if count == measurements.windows:
            break
        field = [evaluation for evaluation in measured if evaluation.finite]
        if rival is not None:
            field.append(rival.first(count))
        best = min(field, key=lambda evaluation: evaluation.cost, default=None)
        alive = [
            evaluation.pattern
            for evaluation in measured
            if best is not None and not _clearly_worse(evaluation, best, standard_errors)
        ]
        count = min(2 * count, measurements.windows)
    return [seen[pattern] for pattern in patterns]


def _clearly_worse(evaluation: Evaluation, best: Evaluation, standard_errors: float) -> bool:
    if not evaluation.finite:
        return True
    sizes = document_sizes(evaluation.documents, len(evaluation.windows))
    return clearly_worse(paired_cost(evaluation, best), sizes, standard_errors)
