"""What eval prints: losses on windows, scores on probes, and whether a plan passed; as tables or as JSON."""

from __future__ import annotations

from typing import Any

import rich.table
from rich import box

from ..evaluate import CALIBRATION, GROUP_TITLES
from ..search.report.tables import Table, probes_table
from ..search.report.words import at_confidence
from ..system.console import new_console, print_line, print_table
from ..system.exits import print_result
from ..system.launching import speaks
from .eval import EvalOutcome
from .job.loss_table import loss_table


def show(outcome: EvalOutcome, as_json: bool) -> None:
    """Prints a plan's check, on stdout."""
    if speaks():
        if as_json:
            print_result(eval_document(outcome))
        else:
            eval_table(outcome)


def eval_table(outcome: EvalOutcome) -> None:
    """Prints a plan's check, on stdout."""
    settings, check, probes = outcome.settings, outcome.check, outcome.probes
    patterns = {"this plan": check.losses.plan, "uniform": check.losses.uniform}
    where = ", in sample" if settings.group == CALIBRATION else ""
    title = f"increase{where}{at_confidence(patterns.values(), settings.gate.confidence)}"
    console = new_console()
    print_line(console, f"{check.windows} {_kind(outcome)} windows of {outcome.length} tokens, nats per token")
    sites, baseline = len(check.losses.plan.pattern), check.losses.baseline_loss
    print_table(console, loss_table(sites, baseline, patterns, title=title))
    if probes is not None:
        number = probes.scores.all.probes
        print_line(console, f"{number} probes of {outcome.length} tokens: nats per answer token, share predicted")
        print_table(console, printed(probes_table(probes.scores, settings.gate.confidence)))
    if outcome.curve is not None:
        budgets, parts = len(outcome.curve.losses.searched), len(outcome.curve.positions)
        print_line(console, f"{budgets} budgets and {parts} parts of the window are measured: see the report")
    if check.passed:
        print_line(console, f"passed: at most {check.max_delta:g} was allowed")
    if probes is not None and probes.passed:
        print_line(console, f"passed on probes: at most {probes.max_probe_delta:g} was allowed")


def _kind(outcome: EvalOutcome) -> str:
    return "unseen" if outcome.settings.text is not None else GROUP_TITLES[outcome.settings.group]


def printed(content: Table) -> rich.table.Table:
    """A table of the report, for the terminal."""
    table = rich.table.Table(box=box.SIMPLE_HEAD)
    for column in content.columns:
        table.add_column(column.heading, justify="left" if column.names else "right", no_wrap=True)
    for row in content.rows:
        table.add_row(*row.cells)
    return table


def eval_document(outcome: EvalOutcome) -> dict[str, Any]:
    """A plan's check as JSON."""
    settings, check, probes = outcome.settings, outcome.check, outcome.probes
    return {
        "group": settings.group if settings.text is None else "unseen",
        "dataset": None if settings.text is None else vars(settings.text.source),
        "window": outcome.length,
        "windows": check.windows,
        "baseline_loss": check.losses.baseline_loss,
        "plan": check.losses.plan.model_dump(),
        "uniform": check.losses.uniform.model_dump(),
        "confidence": check.confidence,
        "gate": check.gate,
        "max_delta": check.max_delta,
        "passed": check.passed,
        "probes": None if probes is None else probes.scores.model_dump(),
        "max_probe_delta": settings.max_probe_delta,
        "probes_passed": None if probes is None else probes.passed,
        "curve": None if outcome.curve is None else outcome.curve.losses.model_dump(),
        "positions": None if outcome.curve is None else [part.model_dump() for part in outcome.curve.positions],
    }
