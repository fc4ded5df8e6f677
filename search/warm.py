"""Warm start: what an older plan's order says of where to look first, and where a new one differs."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PlanError
from .greedy import Step
from .plan import Plan


def priorities(old: Plan, site_layers: Sequence[int]) -> dict[int, float]:
    """Expected loss increase of removing each site, nats per label, from the steps of an older plan.

    The increases are made to rise along the old order, so that this order is followed until a
    measurement speaks against it. Sites that the old search kept are expected to be the dearest.

    Raises:
        PlanError: the plan is for a model with other sites.
    """
    if list(site_layers) != old.model.site_layers:
        raise PlanError(
            f"the plan to start from has {len(old.model.site_layers)} sites in other layers than the model's "
            f"{len(site_layers)}",
            hint="start from a plan of the same architecture",
        )
    expected: dict[int, float] = {}
    before, highest = 0.0, float("-inf")
    for step in old.search.steps:
        highest = max(highest, step.delta - before)
        expected[step.removed_site], before = highest, step.delta
    if expected:
        expected |= {site: highest for site in range(1, len(site_layers)) if site not in expected}
    return expected


def changed_steps(old: Plan, steps: Sequence[Step]) -> list[int]:
    """Numbers of full sites at which the new search removed another site than the old one."""
    removed = {step.kept: step.removed_site for step in old.search.steps}
    return [step.pattern.kept for step in steps if removed.get(step.pattern.kept) != step.removed]
