"""What eval prints: losses on windows, scores on probes, and whether a plan passed; as tables or as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from ..evaluate import CALIBRATION, GROUP_TITLES
from ..search.plan.schema import ProbeRecord, ProbeScores
from ..search.report.pages import interval_of, signed
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
    title = "increase, in sample" if settings.group == CALIBRATION else "increase"
    patterns = {"this plan": check.losses.plan, "uniform": check.losses.uniform}
    table = loss_table(len(check.losses.plan.pattern), check.losses.baseline_loss, patterns, title=title)
    console, confidence = new_console(), settings.gate.confidence
    print_line(console, f"{check.windows} {_kind(outcome)} windows of {outcome.length} tokens, nats per token")
    print_table(console, table)
    print_line(console, f"this plan's increase: {interval_of(check.losses.plan, confidence)}")
    if probes is not None:
        print_line(console, f"{probes.scores.all.probes} probes of {outcome.length} tokens, nats per answer token")
        print_table(console, probes_table([*probes.scores.kinds, probes.scores.all]))
        print_line(console, f"this plan's increase on all: {interval_of(probes.scores.all, confidence)}")
    if check.passed:
        print_line(console, f"passed: at most {check.max_delta:g} was allowed")
    if probes is not None and probes.passed:
        print_line(console, f"probes passed: at most {probes.max_probe_delta:g} was allowed")


def _kind(outcome: EvalOutcome) -> str:
    return "unseen" if outcome.settings.text is not None else GROUP_TITLES[outcome.settings.group]


def probes_table(records: list[ProbeRecord]) -> Table:
    """Loss and share of right answers by kind: of all full, the plan and uniform, and the plan's paired increase."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("probes")
    for name in ("number", "all full", "this plan", "uniform", "increase"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        scores = [_scores(part) for part in (record.full, record.plan, record.uniform)]
        table.add_row(record.kind, str(record.probes), *scores, signed(record.delta, record.standard_error))
    return table


def _scores(scores: ProbeScores) -> str:
    return f"{scores.loss:.3f}, {100 * scores.accuracy:.0f} %"


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
    }
