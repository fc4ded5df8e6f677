"""What distill prints: losses before and after, segment by segment and together; as tables or as the plan."""

from __future__ import annotations

from ..search.report.tables import BEFORE_DISTILLING, Row, Table, distilled_segments
from ..search.report.words import at_confidence
from ..system.console import new_console, print_line, print_table
from ..system.exits import print_result
from ..system.launching import speaks
from .distil import DistilOutcome
from .eval_table import printed
from .job.loss_table import loss_table


def show(outcome: DistilOutcome, as_json: bool, quiet: bool) -> None:
    """Prints the plan or its path on stdout, and what was measured on stderr."""
    if not speaks():
        return
    if not quiet:
        _summary(outcome)
    print_result(outcome.plan.as_json().rstrip() if as_json else str(outcome.path))


def _narrow(segments: Table) -> Table:
    """Without how the training went, which the report shows."""
    places = [
        place
        for place, column in enumerate(segments.columns)
        if not column.heading.startswith(("attention", "learning"))
    ]
    return Table(
        tuple(segments.columns[place] for place in places),
        tuple(Row(tuple(row.cells[place] for place in places), row.chosen) for row in segments.rows),
    )


def _summary(outcome: DistilOutcome) -> None:
    plan, console = outcome.plan, new_console(stderr=True)
    distilled = plan.distilled
    assert distilled is not None, "the plan is of a distilled checkpoint"
    assert plan.heldout is not None, "a distilled plan is checked"
    print_line(
        console,
        f"{plan.model.id}: {plan.result.kept} of {plan.result.sites} indexers kept and distilled; losses in nats "
        f"per token on {plan.tokens.heldout_windows} held-out windows of {plan.tokens.window} tokens",
    )
    patterns = {
        "distilled": distilled.heldout.after,
        BEFORE_DISTILLING: distilled.heldout.before,
        "uniform": plan.heldout.uniform,
    }
    sample = {"distilled": distilled.calibration.after, BEFORE_DISTILLING: distilled.calibration.before}
    title = f"increase{at_confidence(patterns.values(), plan.search.confidence)}"
    print_table(console, loss_table(plan.result.sites, distilled.heldout.baseline_loss, patterns, sample, title))
    print_table(console, printed(_narrow(distilled_segments(plan))))
    print_line(console, f"report   {outcome.settings.out / 'report.html'}")
