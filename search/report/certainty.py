"""How sure a plan is: which steps its windows decide, which layers could take each other's place, and chances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...pattern import Pattern, layer_ranges
from ..plan.schema import Plan, PlanStep
from .words import percent


@dataclass(frozen=True)
class Interchange:
    """A dropped layer and the kept ones that these windows did not tell from it when it was dropped.

    Args:
        dropped: the layer that turned shared.
        kept: by layer, how many windows are expected to decide; None where no number is, or it is not known.
        unknown: those of ``kept`` of which no number was computed, as in a plan cut to another budget.
    """

    dropped: int
    kept: dict[int, int | None]
    unknown: frozenset[int] = frozenset()

    @property
    def outlook(self) -> str:
        """How many windows are expected to decide, layer by layer where that differs."""
        words = {layer: self._windows(layer) for layer in self.kept}
        if len(set(words.values())) == 1:
            return next(iter(words.values()))
        return ", ".join(f"{layer}: {number}" for layer, number in words.items())

    def _windows(self, layer: int) -> str:
        if layer in self.unknown:
            return "not estimated"
        number = self.kept[layer]
        return "no number expected" if number is None else f"about {number}"


def searched(plan: Plan) -> bool:
    """Whether the plan's search measured its pattern, with the indexers that it met."""
    search = plan.search
    known = {
        pattern.pattern
        for pattern in (*search.steps, *search.swaps, *(search.dp if search.strategy == "dp" else ()))
    }
    return plan.result.pattern in known | {start.end for start in search.starts}


def steps_to_budget(plan: Plan) -> list[PlanStep]:
    """The removals down to what the plan keeps; those below it are for other budgets.

    None where `distill` was asked for a pattern that the search did not pick.
    """
    if plan.distilled is not None and not searched(plan):
        return []
    return [step for step in plan.search.steps if step.kept >= plan.result.kept]


@dataclass(frozen=True)
class Decided:
    """How many of the steps down to a plan's budget its windows decide, and with which confidence."""

    count: int
    steps: int
    confidence: float

    def __str__(self) -> str:
        """``9 of 12 steps decided at 95 %``."""
        return f"{self.count} of {self.steps} steps decided at {percent(self.confidence)}"


def decided_steps(plan: Plan) -> Decided | None:
    """The decided steps down to the plan's budget; None where there are none or it was not measured."""
    steps, confidence = steps_to_budget(plan), plan.search.confidence
    if confidence is None or not steps or any(step.undecided_layers is None for step in steps):
        return None
    return Decided(sum(step.undecided_layers == [] for step in steps), len(steps), confidence)


def verdict(step: PlanStep) -> str:
    """From which layers the windows do not tell the one that was dropped, or that they decide the step."""
    if step.undecided_layers is None:
        return layer_ranges(sorted(step.tied_layers))
    if not step.undecided_layers:
        return "decided"
    equal = f"; equal but for rounding: {layer_ranges(sorted(step.tied_layers))}" if step.tied_layers else ""
    return f"{layer_ranges(sorted(step.undecided_layers))}{equal}"


def interchanges(plan: Plan) -> list[Interchange]:
    """Of each dropped layer the kept ones that a search on other documents may well drop instead.

    They follow from the steps, so that a plan cut to another budget has its own.
    """
    removals = steps_to_budget(plan)
    if not removals:
        return []
    dropped = {step.removed_layer for step in removals}
    ties = {(tie.removed_layer, tie.kept_layer): tie.windows for tie in plan.search.ties}
    open_choices = []
    for step in removals:
        layer = step.removed_layer
        rivals = [*(step.undecided_layers or ()), *(kept for removed, kept in ties if removed == layer)]
        kept = [rival for rival in dict.fromkeys(rivals) if rival not in dropped]
        if kept:
            unknown = frozenset(rival for rival in kept if (layer, rival) not in ties)
            open_choices.append(Interchange(layer, {rival: ties.get((layer, rival)) for rival in kept}, unknown))
    return open_choices


def not_decided(plan: Plan) -> str:
    """That windows were added and do not decide the plan, and how many would; "" for any other plan."""
    dropped = {step.removed_layer for step in steps_to_budget(plan)}
    ties = [tie for tie in plan.search.ties if tie.removed_layer in dropped and tie.kept_layer not in dropped]
    if plan.search.decided is not False or not ties:
        return ""
    # The pair that takes most windows stands for the others.
    hardest = max(ties, key=lambda tie: math.inf if tie.windows is None else tie.windows)
    pair = f"layers {hardest.removed_layer} and {hardest.kept_layer}"
    more = len(ties) - 1
    pairs = f"{pair}, and {more} more pair{'s' * (more > 1)}," if more else pair
    would = (
        "no number of windows is expected to"
        if hardest.windows is None
        else f"about {hardest.windows} windows would"
    )
    return f"not decided: {pairs} differ by less than these windows can tell; {would}"


def least_chance(plan: Plan) -> float | None:
    """How often the kept layer that stays least often stays when documents are drawn anew; None if not known."""
    chances = plan.search.kept_chances
    if not chances:
        return None
    return min(chance for chance, role in zip(chances, plan.result.pattern, strict=True) if role == "F")


@dataclass(frozen=True)
class Site:
    """A site of the pattern as the report draws it.

    Args:
        layer: its decoder layer.
        role: F or S.
        source: the layer whose selection it uses.
        pinned: whether it had to stay full.
        chance: how often it stays full when documents are drawn anew; None where that is not known.
    """

    layer: int
    role: str
    source: int
    pinned: bool
    chance: float | None

    @property
    def explanation(self) -> str:
        """The site in a sentence."""
        role = "runs its indexer" if self.role == "F" else f"reuses the selection of layer {self.source}"
        chance = "" if self.chance is None else f"; stays full in {percent(self.chance)} of the draws"
        return f"layer {self.layer} {role}{', pinned' if self.pinned else ''}{chance}"


def strip(plan: Plan) -> list[Site]:
    """The plan's sites in order."""
    numbers = plan.model.site_layers
    chances: Sequence[float | None] = plan.search.kept_chances or [None] * len(numbers)
    sources = Pattern(plan.result.pattern).sources()
    return [
        Site(layer, role, numbers[source], layer in plan.search.pinned_layers, chance)
        for layer, role, source, chance in zip(numbers, plan.result.pattern, sources, chances, strict=True)
    ]


def strip_text(sites: Sequence[Site], width: int = 16) -> str:
    """The sites as lines of plain text, ``width`` of them a block: layer, role, chance in per cent, pinned."""
    blocks = []
    for first in range(0, len(sites), width):
        part = sites[first : first + width]
        rows = {"layer": [str(site.layer) for site in part], "role": [site.role for site in part]}
        if any(site.chance is not None for site in part):
            rows["full, %"] = ["" if site.chance is None else f"{100 * site.chance:.0f}" for site in part]
        if any(site.pinned for site in part):
            rows["pinned"] = ["x" if site.pinned else "" for site in part]
        lines = [f"{name:<8}" + "".join(f"{cell:>4}" for cell in row) for name, row in rows.items()]
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)
