"""How much faster a plan is: what was measured, on what, and what is reckoned from it for other budgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...plan.schema import Plan
from ..drawing.bars import Pair
from ..prefills import PrefillPoint, PrefillRecord
from ..tables import Column, Row, Table
from ..words import percent


@dataclass(frozen=True)
class Speed:
    """How many times faster a plan is than all full.

    Args:
        what: prefill or decoding, and at which length.
        factor: how many times faster.
        where: the device.
        reckoned: not measured at this budget, but reckoned from what was at the plan's own.
    """

    what: str
    factor: float
    where: str
    reckoned: bool = False

    @property
    def words(self) -> str:
        """A part of the verdict."""
        how = "reckoned from measurements" if self.reckoned else "measured"
        return f"{self.what} {self.factor:.2f}x faster, {how} on {self.where}"


def speeds(prefills: PrefillRecord | None, plan: Plan, budget: Plan) -> list[Speed]:
    """What is known of the speed of ``budget``, a budget of ``plan`` that was timed; at the longest context."""
    timed = [point for point in prefills.points if point.all_full and point.plan] if prefills else []
    if prefills is None or not timed:
        return []
    factor = _factor(timed[-1], plan, budget)
    if factor is None:
        return []
    reckoned = budget.result.pattern != prefills.pattern
    # The name stands in a sentence, also of Markdown.
    device = re.sub(r"[^\w .:/-]", "", prefills.device)
    return [Speed(f"prefill of {length(timed[-1].context)} tokens", factor, device, reckoned)]


def _factor(point: PrefillPoint, plan: Plan, budget: Plan) -> float | None:
    """How many times faster a budget is: each indexer is taken to cost the same."""
    if point.all_full is None or point.plan is None:
        return None
    sites, kept = plan.result.sites, plan.result.kept
    if budget.result.kept == kept:
        return point.speedup
    if sites in (kept, budget.result.kept):
        return None
    share = (sites - budget.result.kept) / (sites - kept)
    seconds = point.all_full.seconds + share * (point.plan.seconds - point.all_full.seconds)
    return point.all_full.seconds / seconds if seconds > 0 else None


def length(tokens: int) -> str:
    """A length in words: ``128K``, or all digits where it is no round number of them."""
    return f"{tokens // 1024}K" if tokens >= 4096 and tokens % 1024 == 0 else f"{tokens:,}"


def prefill_table(record: PrefillRecord) -> Table:
    """Medians all full and under the plan, the part that indexers take, and how many times faster the plan is."""
    columns = [
        Column("context"),
        Column("all full, s"),
        Column("indexers"),
        Column("this plan, s"),
        Column("indexers"),
        Column("speedup"),
    ]
    return Table.of(columns, [Row(_cells(point)) for point in record.points])


def _cells(point: PrefillPoint) -> tuple[str, ...]:
    if point.all_full is None or point.plan is None or point.speedup is None:
        return (str(point.context), "does not fit", "", "", "", "")
    figures = [
        text
        for time in (point.all_full, point.plan)
        for text in (f"{time.seconds:.3g}", f"{100 * time.indexer_share:.0f} %")
    ]
    return (str(point.context), *figures, f"{point.speedup:.2f}x")


def prefill_pairs(points: Sequence[PrefillPoint]) -> list[Pair]:
    """The points as bars, those that fitted."""
    return [
        Pair(
            length(point.context),
            (point.all_full.seconds, point.all_full.seconds * point.all_full.indexer_share),
            (point.plan.seconds, point.plan.seconds * point.plan.indexer_share),
            f"{point.speedup:.2f}x" if point.speedup else "",
        )
        for point in points
        if point.all_full and point.plan
    ]


def memory_sentence(plan: Plan) -> str:
    """What shared layers save of the cache of index keys, as far as it follows from the pattern alone."""
    result, shared = plan.result, len(plan.model.shared_layers)
    if result.kept == result.sites:
        return "All indexers stay, so no memory is saved."
    share = percent(round((result.sites - result.kept) / result.sites, 3))
    beside = f", besides {shared} that share in the checkpoint itself" if shared else ""
    return (
        f"A layer without an indexer needs no cache of index keys: {result.sites - result.kept} of {result.sites} "
        f"such caches are not needed{beside}, which is {share} of their memory at any context. An engine saves it "
        "only if it leaves these caches out."
    )
