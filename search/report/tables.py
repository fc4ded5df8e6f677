"""The tables of the report, the same for both of its pages: columns, and rows of figures in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..plan.schema import (
    DistilledLosses,
    DistilledSegment,
    HeldOutRecord,
    MeasuredPattern,
    Plan,
    PlanStep,
    ProbeRecord,
    ProbesRecord,
)
from .certainty import interchanges, searched, steps_to_budget, verdict
from .words import answers, at_confidence, increase, layers, margin, nats, percent, signed

_LONGEST_LIST = 30
BEFORE_DISTILLING = "before distilling"
"""The name of a distilled plan's pattern with the indexers as they were."""


class Column(NamedTuple):
    """A column: its heading, whether it holds names, which are flush left, or figures, and how much it matters.

    ``detail`` marks what is left out where there is no room for it.
    """

    heading: str
    names: bool = False
    detail: bool = False


class Row(NamedTuple):
    """A row of cells; ``chosen`` where it is the plan's own."""

    cells: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; columns in which no row has anything are left out."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
        """The table without its empty columns."""
        filled = [place for place in range(len(columns)) if any(row.cells[place] for row in rows)]
        return cls(
            tuple(columns[place] for place in filled),
            tuple(Row(tuple(row.cells[place] for place in filled), row.chosen) for row in rows),
        )

    def narrow(self) -> Table:
        """The table without its details, and with long lists cut off."""
        places = [place for place, column in enumerate(self.columns) if not column.detail]

        def cell(row: Row, place: int) -> str:
            text = row.cells[place]
            lists = self.columns[place].names and len(text) > _LONGEST_LIST and ", " in text
            return textwrap.shorten(text, _LONGEST_LIST, placeholder=" \u2026") if lists else text

        return Table(
            tuple(self.columns[place] for place in places),
            tuple(Row(tuple(cell(row, place) for place in places), row.chosen) for row in self.rows),
        )


def comparison_table(plan: Plan, heldout: HeldOutRecord | None) -> Table:
    """The plan beside its baselines: held-out figures first where there are any, those in sample last."""
    sample = in_sample(plan)
    lead = sample if heldout is None else held_out(heldout)
    where = "in sample" if heldout is None else "held out"
    baseline = plan.search.baseline_loss if heldout is None else heldout.baseline_loss
    columns = [
        Column("pattern", names=True),
        Column("kept"),
        Column(f"loss, {where}"),
        Column(f"increase, {where}{at_confidence(lead.values(), plan.search.confidence)}"),
        Column("KL"),
        Column("same top token", detail=True),
        Column("key tokens"),
        Column("increase, in sample" if heldout is not None else "", detail=True),
    ]
    rows = [Row(("all full", str(plan.result.sites), f"{baseline:.4f}", "", "", "", "", ""))]
    if plan.distilled is not None:
        sample, lead = _with_before(sample, plan.distilled.calibration), _with_before(lead, plan.distilled.heldout)
    for name in sample | lead:
        calibration = sample.get(name) if heldout is not None else None
        alone = "" if calibration is None else signed(calibration.delta)
        cells = (name, str(plan.result.kept), *_measured(lead.get(name)), alone)
        rows.append(Row(cells, name == "this plan"))
    return Table.of(columns, rows)


def _with_before(patterns: dict[str, MeasuredPattern], losses: DistilledLosses) -> dict[str, MeasuredPattern]:
    """``patterns``, and after the plan's own what it was with the indexers as they were."""
    first, *others = patterns
    return {
        first: patterns[first],
        BEFORE_DISTILLING: losses.before,
        **{name: patterns[name] for name in others},
    }


def in_sample(plan: Plan) -> dict[str, MeasuredPattern]:
    """The patterns of the plan's budget that were measured on the calibration windows, by name."""
    kept, search = plan.result.kept, plan.search
    by_dp = next((pattern for pattern in search.dp if pattern.kept == kept), None)
    by_overlap = next((pattern for pattern in search.overlap if pattern.kept == kept), None)
    baselines = {"dp": by_dp, "uniform": plan.result.uniform, "overlap alone": by_overlap}
    return _beside(plan.result, baselines)


def held_out(heldout: HeldOutRecord) -> dict[str, MeasuredPattern]:
    """The patterns that were measured on held-out windows, by name."""
    return _beside(heldout.plan, {"dp": heldout.dp, "uniform": heldout.uniform})


def _beside(plan: MeasuredPattern, baselines: Mapping[str, MeasuredPattern | None]) -> dict[str, MeasuredPattern]:
    """The plan and what was measured of its baselines; one of dp that is the same pattern is not repeated."""
    others = {name: pattern for name, pattern in baselines.items() if pattern is not None}
    if "dp" in others and others["dp"].pattern == plan.pattern:
        del others["dp"]
    return {"this plan": plan, **others}


def _measured(measured: MeasuredPattern | None) -> tuple[str, str, str, str, str]:
    """Cells: loss, increase, divergence, agreement, key tokens."""
    if measured is None:
        return ("",) * 5
    return (
        f"{measured.loss:.4f}",
        increase(measured),
        "" if measured.divergence is None else nats(measured.divergence),
        _share(measured.agreement),
        "" if measured.key_delta is None else signed(measured.key_delta),
    )


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def probes_table(probes: ProbesRecord, confidence: float | None = None) -> Table:
    """Probes by kind: loss and share right of all full and the patterns, and the plan's paired increase."""
    at = at_confidence([probes.all], confidence)
    columns = [
        Column("kind", names=True),
        Column("probes", detail=True),
        Column("all full"),
        Column("this plan"),
        Column("dp", detail=True),
        Column("uniform"),
        Column(f"increase{at}"),
    ]

    def row(record: ProbeRecord) -> tuple[str, ...]:
        scores = (record.full, record.plan, record.dp, record.uniform)
        return record.kind, str(record.probes), *map(answers, scores), increase(record)

    return Table.of(columns, [*(Row(row(record)) for record in probes.kinds), Row(row(probes.all), chosen=True)])


def steps_table(plan: Plan) -> Table:
    """The removals from all full down, each with what was measured in sample and how sure it is."""
    search, sites = plan.search, plan.result.sites
    spread: Mapping[int, MeasuredPattern] = {pattern.kept: pattern for pattern in search.uniform}
    older = all(step.undecided_layers is None for step in search.steps)
    columns = [
        Column("kept"),
        Column("layer dropped"),
        Column("loss", detail=True),
        Column(f"increase, in sample{at_confidence(search.steps, search.confidence)}"),
        Column("KL", detail=True),
        Column("same top token", detail=True),
        Column("uniform"),
        Column("runner-up", detail=True),
        Column("margin", detail=True),
        Column("tied with" if older else "not told from", names=True),
    ]

    def row(step: PlanStep) -> tuple[str, ...]:
        loss, delta, divergence, agreement, _ = _measured(step)
        # One baseline of the plan's budget stands in the comparison; here it would be a column of gaps.
        uniform = signed(spread[step.kept].delta) if len(spread) > 1 and step.kept in spread else ""
        runner_up = "" if step.runner_up_layer is None else str(step.runner_up_layer)
        measured = (loss, delta, divergence, agreement, uniform)
        return str(step.kept), str(step.removed_layer), *measured, runner_up, margin(step), verdict(step)

    full = (str(sites), "", f"{search.baseline_loss:.4f}", *("",) * 7)
    rows = [Row(full, plan.result.kept == sites)]
    picked = steps_to_budget(plan)[-1:]
    rows += [Row(row(step), step in picked) for step in search.steps]
    return Table.of(columns, rows)


def interchange_table(plan: Plan) -> Table | None:
    """Dropped layers beside the kept ones that these windows do not tell from them; None where there are none."""
    choices = interchanges(plan)
    if not choices:
        return None
    columns = [
        Column("dropped", names=True),
        Column("not told from, kept", names=True),
        Column("windows that would decide", names=True),
    ]
    # Layers that are tied alike share a row.
    dropped: dict[tuple[str, str], list[int]] = {}
    for choice in choices:
        dropped.setdefault((layers(list(choice.kept)), choice.outlook), []).append(choice.dropped)
    return Table.of(columns, [Row((layers(numbers), *alike)) for alike, numbers in dropped.items()])


def starts_table(plan: Plan) -> Table | None:
    """Refinement's starts at the plan's budget and where each ended; None where there are none."""
    starts = [start for start in plan.search.starts if start.start.count("F") == plan.result.kept]
    if not starts or not searched(plan):
        return None
    columns = [
        Column("start", names=True),
        Column("began with", names=True),
        Column("cost then"),
        Column("swaps"),
        Column("ended in", names=True),
        Column("cost at the end"),
    ]
    rows = [
        Row(
            (start.name, start.start, nats(start.start_cost), str(start.swaps), start.end, nats(start.end_cost)),
            number == 0,
        )
        for number, start in enumerate(starts)
    ]
    return Table.of(columns, rows)


def swaps_table(plan: Plan) -> Table | None:
    """The swaps that led to the plan, measured in sample; None where there are none at its budget."""
    swaps = [swap for swap in plan.search.swaps if swap.kept == plan.result.kept]
    if not swaps or not searched(plan):
        return None
    columns = [
        Column("layer dropped"),
        Column("layer restored"),
        Column("loss", detail=True),
        Column(f"increase, in sample{at_confidence(swaps, plan.search.confidence)}"),
        Column("KL"),
        Column("same top token"),
    ]
    rows = []
    for swap in swaps:
        loss, delta, divergence, agreement, _ = _measured(swap)
        layers_of_swap = (str(swap.removed_layer), str(swap.restored_layer))
        rows.append(Row((*layers_of_swap, loss, delta, divergence, agreement), swap is swaps[-1]))
    return Table.of(columns, rows)


def distilled_pair(plan: Plan) -> Table:
    """The pattern before and after, held out and in sample."""
    distilled = plan.distilled
    assert distilled is not None, "the plan's indexers are distilled"
    pairs = {"held out": distilled.heldout, "in sample": distilled.calibration}
    measured = [pattern for pair in pairs.values() for pattern in (pair.before, pair.after)]
    columns = [
        Column("windows", names=True),
        Column("loss, all full"),
        Column(f"increase before{at_confidence(measured, plan.search.confidence)}"),
        Column("increase after"),
        Column("remains"),
        Column("KL before", detail=True),
        Column("KL after", detail=True),
    ]
    rows = [
        Row(
            (
                name,
                f"{pair.baseline_loss:.4f}",
                increase(pair.before),
                increase(pair.after),
                _rest(pair.before, pair.after),
                _divergence(pair.before.divergence),
                _divergence(pair.after.divergence),
            ),
            name == "held out",
        )
        for name, pair in pairs.items()
    ]
    return Table.of(columns, rows)


def distilled_segments(plan: Plan) -> Table:
    """Each kept indexer: whom it serves, how far it came, and whether it was written."""
    distilled = plan.distilled
    assert distilled is not None, "the plan's indexers are distilled"
    columns = [
        Column("layer", names=True),
        Column("serves", names=True),
        Column("KL alone, before"),
        Column("KL alone, after"),
        Column("attention KL, first", detail=True),
        Column("attention KL, last", detail=True),
        Column("learning rate", detail=True),
        Column("written", names=True),
    ]
    return Table.of(columns, [Row(_segment_cells(segment)) for segment in distilled.segments])


def _segment_cells(segment: DistilledSegment) -> tuple[str, ...]:
    served = str(segment.layer) if segment.layer == segment.last_layer else f"{segment.layer}-{segment.last_layer}"
    curve = [nats(point.divergence) for point in segment.curve]
    untrained = "kept: serves itself alone"
    return (
        str(segment.layer),
        served,
        _divergence(segment.divergence_before),
        _divergence(segment.divergence_after),
        curve[0] if curve else "",
        curve[-1] if curve else "",
        "" if segment.learning_rate is None else f"{segment.learning_rate:g}",
        "yes" if segment.written else untrained if not curve else "no: it came no nearer",
    )


def _rest(before: MeasuredPattern, after: MeasuredPattern) -> str:
    return percent(after.delta / before.delta) if before.delta > 0 and after.delta >= 0 else ""


def _divergence(value: float | None) -> str:
    return "" if value is None else nats(value)
