"""What a plan's curve shows, as numbers: patterns of one origin at several budgets, in sample or held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...pattern import Pattern
from ..plan.schema import HeldOutRecord, MeasuredPattern, Plan
from .certainty import searched

SEARCHED = "searched"
JOINT = "searched jointly"
UNIFORM = "uniform interleaving"
OVERLAP = "by overlap alone"
DP = "dp over layer costs"
DISTILLED_AFTER = "distilled after search"
JOINT_DISTILLED = "searched jointly, distilled"
GIVEN_DISTILLED = "given pattern, distilled"
UNIFORM_DISTILLED = "uniform, distilled"
ON_HELD_OUT = ", held out"
"""How the name of a series ends that was measured on windows which chose nothing."""


@dataclass(frozen=True)
class Point:
    """A pattern on the curve.

    Args:
        kept: full sites.
        increase: of the loss over all full, nats per token.
        low: end of its interval, in older plans one standard error below; None where one document gives none.
        high: the other end.
    """

    kept: int
    increase: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    """Patterns of one origin.

    Args:
        name: of the origin, one of the names above; with ``ON_HELD_OUT`` behind it where they were held out.
        points: one a budget, from most full sites to fewest.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def origin(self) -> str:
        """The name without where it was measured."""
        return self.name.removesuffix(ON_HELD_OUT)

    @property
    def is_held_out(self) -> bool:
        """Whether it was measured on windows that chose nothing."""
        return self.name.endswith(ON_HELD_OUT)


def series(plan: Plan, heldout: HeldOutRecord | None = None) -> tuple[Series, ...]:
    """All that was measured of ``plan`` at one budget or more; the searched patterns first.

    Losses of a joint search are with indexers distilled for each pattern, uniform's too, and are named so. Where
    the same pattern was distilled in full, this takes the place of what the search measured.

    Args:
        plan: searched, or distilled after that.
        heldout: the check on held-out windows; the plan's own by default.
    """
    heldout = heldout or plan.heldout
    search, by_dp, joint = plan.search, plan.search.strategy == "dp", plan.search.students is not None
    in_sample = {
        JOINT if joint else SEARCHED: searched_points(plan),
        **_distilled(plan, in_sample=True),
        OVERLAP: search.overlap,
        DP: () if by_dp else search.dp,
    }
    spread = UNIFORM_DISTILLED if joint else UNIFORM
    in_sample[spread] = [*search.uniform, *in_sample.get(spread, ())]
    checked: dict[str, Sequence[MeasuredPattern]] = {}
    if heldout is not None and plan.distilled is None:
        checked = {JOINT if joint else SEARCHED: [heldout.plan], spread: [heldout.uniform]}
    elif heldout is not None and plan.distilled is not None:
        checked = {UNIFORM: [heldout.uniform], **_distilled(plan, in_sample=False)}
        # With the indexers as they were, which a joint search never measured.
        if not joint and plan.result.pattern in {point.pattern for point in in_sample[SEARCHED]}:
            checked[SEARCHED] = [plan.distilled.heldout.before]
    if heldout is not None and heldout.dp is not None:
        checked[DP] = [heldout.dp]
    return (*_named(in_sample, ""), *_named(checked, ON_HELD_OUT))


def searched_points(plan: Plan) -> Sequence[MeasuredPattern]:
    """The patterns of the search, from most full sites to fewest; the one picked where there were no steps."""
    search = plan.search
    picked = plan.result if plan.distilled is None else plan.distilled.calibration.before
    return search.steps or (search.dp if search.strategy == "dp" else []) or [picked]


def _distilled(plan: Plan, in_sample: bool) -> dict[str, list[MeasuredPattern]]:
    """What was measured with distilled indexers, by origin."""
    record = plan.distilled
    if record is None:
        return {}
    losses = record.calibration if in_sample else record.heldout
    return {_origin(plan): [losses.after]}


def _origin(plan: Plan) -> str:
    """Where the pattern of a distilled plan comes from."""
    pattern = plan.result.pattern
    if pattern == str(Pattern.uniform(plan.result.sites, plan.result.kept, plan.pinned_sites)):
        return UNIFORM_DISTILLED
    if not searched(plan):
        return GIVEN_DISTILLED
    return DISTILLED_AFTER if plan.search.students is None else JOINT_DISTILLED


def _named(measured: dict[str, Sequence[MeasuredPattern]], suffix: str) -> list[Series]:
    """A series of each origin of which anything was measured; of one budget the last measured counts."""
    return [
        Series(name + suffix, tuple(point(by_kept[kept]) for kept in sorted(by_kept, reverse=True)))
        for name, patterns in measured.items()
        if (by_kept := {pattern.kept: pattern for pattern in patterns})
    ]


def point(pattern: MeasuredPattern) -> Point:
    """A measured pattern; one document gives neither interval nor standard error."""
    error = pattern.standard_error
    low = pattern.low if pattern.low is not None or error is None else pattern.delta - error
    high = pattern.high if pattern.high is not None or error is None else pattern.delta + error
    return Point(pattern.kept, pattern.delta, low, high)
