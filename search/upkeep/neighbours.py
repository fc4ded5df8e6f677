"""Patterns one swap away from a plan's, those first between which and its own its search found least."""

from __future__ import annotations

from dataclasses import dataclass

from ...pattern import Pattern
from ..plan.schema import Plan


@dataclass(frozen=True)
class Neighbour:
    """A pattern as sparse as the plan's: ``restored_layer`` runs its indexer again, ``removed_layer`` shares."""

    pattern: Pattern
    restored_layer: int
    removed_layer: int


def nearest_swaps(plan: Plan, count: int) -> list[Neighbour]:
    """The ``count`` swaps that the plan's search found closest to what it chose.

    They undo a removal and remove its runner-up instead, those first whose runner-up was the least dearer. Where
    there are too few of them, as layer costs or refinement chose, full sites move elsewhere, the nearest first.
    """
    place = {layer: site for site, layer in enumerate(plan.model.site_layers)}
    full, fixed = set(plan.pattern.full), {0, *plan.pinned_sites}
    steps = [step for step in plan.search.steps if step.kept >= plan.result.kept]
    closest = sorted(
        (step for step in steps if step.margin is not None and step.runner_up_layer is not None),
        key=lambda step: step.margin or 0.0,
    )
    pairs = [(step.removed_site, place[step.runner_up_layer or 0]) for step in closest]
    # By how often the site stays when documents are drawn anew, where that is known: the shakiest first.
    chances = plan.search.kept_chances or [0.0] * len(place)
    movable = sorted(full - fixed, key=lambda site: chances[site])
    moves = [(shared, site) for site in movable for shared in range(len(place)) if shared not in full]
    pairs += sorted(moves, key=lambda move: abs(move[0] - move[1]))
    neighbours: dict[str, Neighbour] = {}
    for restored, removed in pairs:
        if restored in full or removed not in full or removed in fixed:
            continue
        pattern = Pattern.from_full(len(place), sorted((full - {removed}) | {restored}))
        layers = plan.model.site_layers[restored], plan.model.site_layers[removed]
        neighbours.setdefault(str(pattern), Neighbour(pattern, *layers))
    return list(neighbours.values())[:count]
