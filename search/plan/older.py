"""Warm start: what an older plan's order says of where to look first, and where a new one differs."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PlanError
from ...pattern import Pattern
from ..strategies.greedy import Step
from .schema import Plan


def old_order(old: Plan, site_layers: Sequence[int]) -> tuple[int, ...]:
    """The sites that an older plan's search removed, in their order.

    Raises:
        PlanError: the plan is for a model with other sites, or removed none.
    """
    if list(site_layers) != old.model.site_layers:
        raise PlanError(
            f"the plan to start from has {len(old.model.site_layers)} sites in other layers than the model's "
            f"{len(site_layers)}",
            hint="start from a plan of the same architecture",
        )
    if not old.search.steps:
        raise PlanError("the plan to start from has no steps", hint="start from one that was searched further")
    return tuple(step.removed_site for step in old.search.steps)


def old_patterns(old: Plan) -> dict[int, Pattern]:
    """What an older plan's search reached, by the number of full sites; what it picked goes before the step."""
    return {step.kept: Pattern(step.pattern) for step in old.search.steps} | {old.result.kept: old.pattern}


def changed_steps(old: Plan, steps: Sequence[Step]) -> list[int]:
    """Numbers of full sites, of those both searches reached, at which they removed different sites."""
    removed = {step.kept: step.removed_site for step in old.search.steps}
    return [step.pattern.kept for step in steps if removed.get(step.pattern.kept, step.removed) != step.removed]
