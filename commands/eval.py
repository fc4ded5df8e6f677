"""The eval command: a plan measured again on its own tokens and held to a limit, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibrate.frozen import thaw
from ..dsa.checkpoint.config import Trust
from ..dsa.checkpoint.load import Placement
from ..dsa.long.backends import Backends
from ..errors import DatasetError, MeasurementError, OutputError, PlanError
from ..evaluate import SPOKEN
from ..search.plan.record import heldout_record
from ..search.plan.schema import Measured, Plan
from ..search.report.checks import Check, check_file, with_check
from ..search.report.pages import increase
from ..search.run.folder import has_report, render_beside
from ..search.run.timing import now
from ..search.search import compare
from ..system import processes
from ..system.console import Reporter, loss_rows, new_console, print_line
from ..system.files import write_atomically
from .job.measure import evaluator, load, run_identity
from .job.prepare import announce, check_identity, check_tokens, model_identity, plans_checkpoint


@dataclass(frozen=True)
class EvalOutcome:
    """A plan measured again: losses on ``group`` of all full, the plan and uniform interleaving.

    ``passed`` is None where no limit was given.
    """

    group: str
    windows: int
    baseline_loss: float
    plan: Measured
    uniform: Measured
    max_delta: float | None
    passed: bool | None


def evaluate(
    plan: Plan,
    path: Path,
    group: str,
    max_delta: float | None,
    model_id: str | None,
    placement: Placement,
    trust: Trust,
    reporter: Reporter,
) -> EvalOutcome:
    """Measures the plan in the file ``path`` on its own frozen tokens and holds it to ``max_delta``.

    What was measured is kept beside the plan and shown in its report, where there is one.

    Raises:
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        IndexcacheError: one of its other kinds.
    """
    windows = thaw(path.parent / plan.tokens.file, plan.tokens.sha256)
    if not len(windows.group(group)):
        raise DatasetError(f"the plan has no {SPOKEN[group]} windows", hint="measure it with --on calibration")
    checkpoint = plans_checkpoint(plan, model_id, trust)
    announce(checkpoint, reporter)
    check_tokens(plan.tokens, windows, checkpoint)
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    check_identity(plan.model, processes.main_does(lambda: model_identity(checkpoint, plan.model.weights_hash)))
    ran = Backends(plan.run.indexer, plan.run.attention)
    processes.use_threads(plan.run.threads)
    loaded = load(checkpoint, plan.run.dtype, placement, ran, windows.length, reporter)
    measure = evaluator(loaded, checkpoint, windows, None, reporter)
    reporter.begin(3 * len(windows.group(group)), "window evaluations")
    labels, documents = windows.length - 1, windows.documents(group)
    found = heldout_record(compare(measure, group, labels, documents, plan.pattern, plan.pinned_sites))
    if found is None:
        raise MeasurementError(f"a loss on the {SPOKEN[group]} windows is NaN or infinite")
    run = run_identity(loaded)
    check = Check(
        when=now(),
        model=checkpoint.model_id,
        device=run.device,
        dtype=run.dtype,
        windows=len(windows.group(group)),
        losses=found,
        max_delta=max_delta,
        passed=None if max_delta is None else found.plan.delta <= max_delta,
        versions=run.versions,
    )
    processes.main_does(lambda: _keep(plan, path, group, check, reporter))
    return EvalOutcome(
        group=group,
        windows=check.windows,
        baseline_loss=found.baseline_loss,
        plan=found.plan,
        uniform=found.uniform,
        max_delta=max_delta,
        passed=check.passed,
    )


def _keep(plan: Plan, path: Path, group: str, check: Check, reporter: Reporter) -> None:
    """Writes a check beside its plan and into the report; where that cannot be, its result is still printed."""
    try:
        write_atomically(check_file(path), with_check(plan, check_file(path), group, check).as_json())
        if has_report(path):
            render_beside(plan, path)
    except (OutputError, PlanError) as error:
        reporter.warn(f"what was measured is not kept beside the plan, or not in its report: {error}")


def eval_table(outcome: EvalOutcome) -> None:
    """Prints a plan's check, on stdout."""
    table = loss_rows(heldout=False)
    table.add_row("all full", str(len(outcome.plan.pattern)), f"{outcome.baseline_loss:.4f}", "")
    for name, each in (("this plan", outcome.plan), ("uniform", outcome.uniform)):
        table.add_row(name, str(each.kept), f"{each.loss:.4f}", increase(each))
    console = new_console()
    print_line(console, f"{outcome.windows} {SPOKEN[outcome.group]} windows, nats per token")
    console.print(table)
    if outcome.passed:
        print_line(console, f"passed: at most {outcome.max_delta:g} was allowed")


def eval_document(outcome: EvalOutcome) -> dict[str, Any]:
    """A plan's check as JSON."""
    return {
        "group": outcome.group,
        "windows": outcome.windows,
        "baseline_loss": outcome.baseline_loss,
        "plan": outcome.plan.model_dump(),
        "uniform": outcome.uniform.model_dump(),
        "max_delta": outcome.max_delta,
        "passed": outcome.passed,
    }
