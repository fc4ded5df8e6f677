"""What distilling changed, as the report shows it: the pair before and after, and segment by segment."""

from __future__ import annotations

from ..plan.schema import DistilledSegment, MeasuredPattern, Plan
from .tables import Column, Row, Table
from .words import at_confidence, increase, nats, percent

BEFORE = "before distilling"


def sentence(plan: Plan) -> str:
    """What was distilled, on what, and what the figures mean; "" where nothing was."""
    distilled = plan.distilled
    if distilled is None:
        return ""
    written = sum(segment.written for segment in distilled.segments)
    rate = (
        "a learning rate probed for each"
        if distilled.learning_rate is None
        else f"rate {distilled.learning_rate:g}"
    )
    return (
        f"{written} of {len(distilled.segments)} kept indexers are distilled: they were trained against the mean "
        f"attention of all layers that they serve, for {distilled.steps} steps of {distilled.windows_a_step} "
        f"windows and {distilled.rows} queries each, {rate}, "
        f"on {distilled.windows} windows of {plan.tokens.window:,} tokens. "
        "All increases of this plan are over the model as it was, all full. "
        "These indexers fit this pattern only. The search's steps and curve are those of the model as it was."
    )


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
        Column("KL before"),
        Column("KL after"),
    ]
    rows = [
        Row(
            (
                name,
                f"{pair.baseline_loss:.4f}",
                increase(pair.before),
                increase(pair.after),
                _share(pair.before, pair.after),
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
        Column("attention KL, first"),
        Column("attention KL, last"),
        Column("learning rate"),
        Column("written", names=True),
    ]
    return Table.of(columns, [Row(_cells(segment)) for segment in distilled.segments])


def _cells(segment: DistilledSegment) -> tuple[str, ...]:
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


def _share(before: MeasuredPattern, after: MeasuredPattern) -> str:
    return percent(after.delta / before.delta) if before.delta > 0 and after.delta >= 0 else ""


def _divergence(value: float | None) -> str:
    return "" if value is None else nats(value)
