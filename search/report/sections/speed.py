"""How much faster a plan is: what was measured, on what, and what is reckoned from it for other budgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...plan.schema import Plan
from ...price.decodes import DecodePoint, DecodeRecord
from ...price.memory import IndexerSizes
from ...price.prefills import PrefillPoint, PrefillRecord
from ..drawing.bars import Pair
from ..tables import Column, Row, Table
from ..words import percent
from ..worth import memory_sentence


@dataclass(frozen=True)
class Speed:
    """How many times faster a plan is than all full.

    Args:
        what: prefill or decoding, and at which length.
        factor: how many times faster.
        where: the device.
        reckoned: not measured at this budget, but reckoned from what was at the plan's own.
        other: the model that was timed, where its config is not the one searched; "" where it is.
    """

    what: str
    factor: float
    where: str
    reckoned: bool = False
    other: str = ""

    @property
    def words(self) -> str:
        """A part of the verdict."""
        how = "reckoned from measurements" if self.reckoned else "measured"
        model = f" with {self.other}, whose config is not the one searched," if self.other else ""
        return f"{self.what} {self.factor:.2f}x faster, {how}{model} on {self.where}"


def speeds(prefills: PrefillRecord | None, decodes: DecodeRecord | None, plan: Plan, budget: Plan) -> list[Speed]:
    """What is known of the speed of ``budget``, a budget of ``plan`` that was timed; at the longest contexts."""
    measured: list[tuple[str, PrefillPoint | DecodePoint, PrefillRecord | DecodeRecord]] = []
    timed = [point for point in prefills.points if point.speedup] if prefills else []
    if prefills is not None and timed:
        longest = max(timed, key=lambda point: point.context)
        measured.append((f"prefill of {length(longest.context)} tokens", longest, prefills))
    steps = [point for point in decodes.points if point.speedup] if decodes else []
    if decodes is not None and steps:
        behind = max(steps, key=lambda point: (point.context, -point.batch))
        together = f" of {behind.batch} sequences" if behind.batch > 1 else ""
        measured.append((f"output tokens{together} behind {length(behind.context)} tokens", behind, decodes))
    known = []
    for what, point, record in measured:
        factor = _factor(point, plan, budget)
        if factor is not None:
            other = "" if record.config_sha256 == plan.model.config_sha256 else _plain(record.model)
            reckoned = budget.result.pattern != record.pattern
            known.append(Speed(what, factor, _plain(record.device), reckoned, other))
    return known


def _plain(name: str) -> str:
    """A name as it stands in a sentence, also of Markdown."""
    return re.sub(r"[^\w .:/-]", "", name)


def _factor(point: PrefillPoint | DecodePoint, plan: Plan, budget: Plan) -> float | None:
    """How many times faster a budget is: each indexer is taken to cost the same."""
    sites, kept = plan.result.sites, plan.result.kept
    if point.all_full is None or point.plan is None or sites in (kept, budget.result.kept):
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


def memory_words(plan: Plan, sizes: IndexerSizes | None) -> str:
    """What shared layers save of the cache of index keys: by the config, or as far as the pattern alone tells."""
    result, shared = plan.result, len(plan.model.shared_layers)
    if result.kept == result.sites:
        return "All indexers stay, so no memory is saved."
    if sizes is not None:
        return memory_sentence(plan, sizes)
    share = percent(round((result.sites - result.kept) / result.sites, 3))
    beside = f", besides {shared} that share in the checkpoint itself" if shared else ""
    return (
        f"A layer without an indexer needs no cache of index keys: {result.sites - result.kept} of {result.sites} "
        f"such caches are not needed{beside}, which is {share} of their memory at any context. An engine saves it "
        "only if it leaves these caches out."
    )
