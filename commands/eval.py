"""The eval command: a plan measured again on its own tokens and held to a limit, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibrate.windows import Windows
from ..dsa.checkpoint.load import Placement
from ..dsa.long.backends import Backends
from ..errors import DatasetError, MeasurementError, OutputError, PlanError
from ..evaluate import GROUP_TITLES
from ..search.goal import Goal, Method
from ..search.intervals import CONFIDENCE
from ..search.plan.cut import within
from ..search.plan.record import heldout_record
from ..search.plan.schema import MeasuredPattern, Plan
from ..search.report.checks import Check, check_file, with_check
from ..search.report.timing import now
from ..search.run.folder import has_report, render_beside
from ..search.search import compare
from ..system import processes
from ..system.console import Reporter, new_console, print_line, print_table
from ..system.exits import print_result
from ..system.files import write_atomically
from ..system.launching import speaks
from .job.loss_table import loss_table
from .job.measure import Loaded, evaluator, load, run_identity, running_on
from .job.planned import PlannedModel
from .job.prepare import announce
from .job.windows import windows_problem


@dataclass(frozen=True)
class EvalOutcome:
    """A plan measured again: losses on ``group`` of all full, the plan and uniform interleaving.

    ``passed`` is None where no limit was given.
    """

    group: str
    windows: int
    baseline_loss: float
    plan: MeasuredPattern
    uniform: MeasuredPattern
    max_delta: float | None
    passed: bool | None


def evaluate(
    planned: PlannedModel,
    path: Path,
    group: str,
    max_delta: float | None,
    placement: Placement,
    reporter: Reporter,
) -> EvalOutcome:
    """Measures the plan in the file ``path`` on its own frozen tokens and holds it to ``max_delta``.

    What was measured is kept beside the plan and shown in its report, where there is one.

    Raises:
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        IndexcacheError: one of its other kinds.
    """
    plan, checkpoint = planned.plan, planned.checkpoint
    windows = planned.windows(path.parent)
    if not len(windows.group(group)):
        raise DatasetError(
            f"the plan has no {GROUP_TITLES[group]} windows", hint="measure it with --on calibration"
        )
    announce(checkpoint, reporter)
    planned.check_weights(reporter)
    loaded = _model(planned, windows, group, placement, reporter)
    measure = evaluator(loaded, windows, reporter)
    reporter.begin(3 * len(windows.group(group)), "window evaluations")
    method = Method(pinned=plan.pinned_sites)
    problem = windows_problem(measure, windows, len(plan.model.site_layers), Goal(keep=1.0), method)
    losses = heldout_record(compare(problem, group, plan.pattern), CONFIDENCE)
    if losses is None:
        raise MeasurementError(f"a loss on the {GROUP_TITLES[group]} windows is NaN or infinite")
    run = run_identity(loaded)
    check = Check(
        when=now(),
        model=checkpoint.model_id,
        device=run.device,
        dtype=run.dtype,
        windows=len(windows.group(group)),
        losses=losses,
        max_delta=max_delta,
        passed=None if max_delta is None else within(losses.plan, max_delta),
        versions=run.versions,
    )
    processes.run_on_main(lambda: _keep(plan, path, group, check, reporter))
    return EvalOutcome(
        group=group,
        windows=check.windows,
        baseline_loss=losses.baseline_loss,
        plan=losses.plan,
        uniform=losses.uniform,
        max_delta=max_delta,
        passed=check.passed,
    )


def _model(
    planned: PlannedModel, windows: Windows, group: str, placement: Placement, reporter: Reporter
) -> Loaded:
    """The plan's model, run as the plan says; tried on the plan's tokens where something else computes."""
    plan, checkpoint, length = planned.plan, planned.checkpoint, windows.length
    processes.use_threads(plan.run.threads)
    backends = Backends(plan.run.indexer, plan.run.attention)
    running = running_on(checkpoint, plan.run.dtype, placement, backends, length)
    trial_tokens = windows.group(group).ravel().tolist()
    return load(checkpoint, planned.weights, running, length, reporter, trial_tokens, plan.run)


def _keep(plan: Plan, path: Path, group: str, check: Check, reporter: Reporter) -> None:
    """Writes a check beside its plan and into the report; where that cannot be, its result is still printed."""
    try:
        write_atomically(check_file(path), with_check(plan, check_file(path), group, check).as_json())
        if has_report(path):
            render_beside(plan, path)
    except (OutputError, PlanError) as error:
        reporter.warn(f"what was measured is not kept beside the plan, or not in its report: {error}")


def show(outcome: EvalOutcome, as_json: bool) -> None:
    """Prints a plan's check, on stdout."""
    if speaks():
        if as_json:
            print_result(eval_document(outcome))
        else:
            eval_table(outcome)


def eval_table(outcome: EvalOutcome) -> None:
    """Prints a plan's check, on stdout."""
    patterns = {"this plan": outcome.plan, "uniform": outcome.uniform}
    table = loss_table(len(outcome.plan.pattern), outcome.baseline_loss, patterns)
    console = new_console()
    print_line(console, f"{outcome.windows} {GROUP_TITLES[outcome.group]} windows, nats per token")
    print_table(console, table)
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
