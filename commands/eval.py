"""The eval command: a plan measured again, on its own tokens or on others, and held to a limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibrate.frozen import token_sha256
from ..calibrate.windows import WindowRequest, Windows
from ..dsa.long.backends import Backends
from ..dsa.model.evaluator import Evaluator
from ..dsa.stream.room import Room
from ..errors import DatasetError, GateError, MeasurementError, OutputError, PlanError
from ..evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT_PROBES, LEARNING, REFINEMENT
from ..search.goal import Goal, Method
from ..search.plan.file import check_indexers
from ..search.plan.record import heldout_record, probes_record
from ..search.plan.schema import HeldOutRecord, Plan, ProbesRecord
from ..search.report.checks import (
    Check,
    CurveCheck,
    CurveLosses,
    PositionLosses,
    ProbesCheck,
    UnseenCheck,
    check_file,
    with_check,
    with_unseen_check,
)
from ..search.report.timing import now
from ..search.report.words import NOT_COMPLETE
from ..search.run.folder import has_report, render_beside
from ..search.search import compare
from ..system import processes
from ..system.console import Reporter
from ..system.files import write_atomically
from .eval_curve import curve_evaluations, measured_curve, with_stretches
from .eval_settings import EvalSettings, OtherText
from .fingerprint import Source, write_beside
from .job.measure import Loaded, evaluator, load, run_identity, running_on
from .job.planned import PlannedModel
from .job.prepare import announce
from .job.windows import ProbeRequest, build_windows, check_documents, check_window, windows_problem

Measured = tuple[HeldOutRecord, ProbesRecord | None, tuple[CurveLosses, list[PositionLosses]] | None]
"""Losses on windows, scores on probes, and losses of every budget with those by position."""


@dataclass(frozen=True)
class EvalOutcome:
    """A plan measured again, with all full and uniform interleaving beside it, and what it was held to.

    ``check`` is of the plan's own windows or an ``UnseenCheck``; ``probes`` and ``curve`` are None where they were
    not measured.
    """

    settings: EvalSettings
    length: int
    check: Check
    probes: ProbesCheck | None
    curve: CurveCheck | None = None

    def hold(self) -> None:
        """Ends what did not pass.

        Raises:
            GateError: names what increases by how much, and the limit.
        """
        settings, gate, failures = self.settings, self.settings.gate, []
        if self.check.passed is False and settings.max_delta is not None:
            increase = self.check.losses.plan
            failures.append(gate.failure(increase, settings.max_delta, "--max-delta", "the plan's loss"))
        if self.probes is not None and self.probes.passed is False and settings.max_probe_delta is not None:
            scores, subject = self.probes.scores.all, "the plan's loss on probes"
            failures.append(gate.failure(scores, settings.max_probe_delta, "--max-probe-delta", subject))
        if failures:
            raise GateError("; ".join(failures))


def evaluate(
    planned: PlannedModel, path: Path, settings: EvalSettings, room: Room, reporter: Reporter
) -> EvalOutcome:
    """Measures the plan in the file ``path`` as ``settings`` ask for, and holds it to their limits.

    What was measured is kept beside the plan and shown in its report, where there is one.

    Raises:
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        IndexcacheError: one of its other kinds.
    """
    check_indexers(planned.plan)
    windows = planned.windows(path.parent)
    announce(planned.checkpoint, reporter)
    for line in (*settings.warnings, *([] if planned.plan.complete else [NOT_COMPLETE])):
        reporter.warn(line)
    if settings.text is not None:
        windows = unseen_windows(planned, windows, settings, settings.text, reporter)
    check_groups(windows, settings)
    planned.check_weights(reporter)
    loaded = model_for(planned, windows, settings.group, room, reporter)
    if settings.with_curve:
        windows = with_stretches(windows, planned.plan)
    measured = evaluator(loaded, windows, reporter)
    outcome = _outcome(
        planned, loaded, windows, settings, _measured(planned, measured, windows, settings, reporter)
    )
    unseen = (
        None if settings.text is None else _unseen_check(outcome.check, outcome.probes, windows, settings.text)
    )
    processes.run_on_main(lambda: _keep(planned.plan, path, outcome, unseen, reporter))
    if settings.fingerprint:
        source = Source(loaded, planned.weights, windows, measured)
        write_beside(planned.plan, path, source, reporter)
    return outcome


def _outcome(
    planned: PlannedModel, loaded: Loaded, windows: Windows, settings: EvalSettings, measured: Measured
) -> EvalOutcome:
    """What was measured, how, and whether it keeps within the limits."""
    losses, scores, budgets = measured
    run, gate = run_identity(loaded), settings.gate
    how: dict[str, Any] = {
        "when": now(),
        "model": planned.checkpoint.model_id,
        "confidence": gate.confidence,
        "gate": gate.kind,
        **run.model_dump(include={"device", "dtype", "versions"}),
    }
    check = Check(
        windows=_window_count(planned.plan, windows, settings),
        losses=losses,
        max_delta=settings.max_delta,
        passed=gate.passes(losses.plan, settings.max_delta),
        **how,
    )
    probes = None
    if scores is not None:
        limit = settings.max_probe_delta
        probes = ProbesCheck(scores=scores, max_probe_delta=limit, passed=gate.passes(scores.all, limit), **how)
    curve = None
    if budgets is not None:
        curve = CurveCheck(windows=check.windows, losses=budgets[0], positions=budgets[1], passed=None, **how)
    return EvalOutcome(settings, windows.length, check, probes, curve)


def unseen_windows(
    planned: PlannedModel, planned_windows: Windows, settings: EvalSettings, text: OtherText, reporter: Reporter
) -> Windows:
    """Windows of text that the search has not seen, and probes in it.

    Raises:
        WindowError: windows too short or too long.
        DatasetError: text that cannot be read, or too little of it.
    """
    plan, checkpoint = planned.plan, planned.checkpoint
    check_window(checkpoint, text.length, text.beyond_positions, reporter)
    request = WindowRequest(text.length, calibration=0, heldout=text.count, seed=plan.tokens.seed)
    probes = ProbeRequest(settings.probes if settings.with_probes else 0, needed=True)
    groups = planned_windows.groups
    seen = [groups[name] for name in (CALIBRATION, REFINEMENT, LEARNING) if name in groups]
    reporter.doing(f"reading {text.source.dataset}")
    return processes.run_on_main(lambda: build_windows(checkpoint, text.source, request, probes, reporter, seen))


def check_groups(windows: Windows, settings: EvalSettings) -> None:
    """Refuses to measure on what is not there, or what cannot be held to a limit.

    Raises:
        DatasetError: the plan has no such windows or probes.
        SettingError: one document gives no interval that could be held to a limit.
    """
    title = GROUP_TITLES[settings.group]
    if not len(windows.group(settings.group)):
        raise DatasetError(f"the plan has no {title} windows", hint="measure it with --on calibration")
    if settings.with_probes and HELD_OUT_PROBES not in windows.groups:
        raise DatasetError(
            "the plan has no probes: its search made none",
            hint=f"give --window {windows.length}: then some are made in text that the search has not seen",
        )
    gate = settings.gate.kind
    check_documents(windows, settings.group, settings.max_delta, "--max-delta", gate)
    check_documents(windows, HELD_OUT_PROBES, settings.max_probe_delta, "--max-probe-delta", gate)


def model_for(planned: PlannedModel, windows: Windows, group: str, room: Room, reporter: Reporter) -> Loaded:
    """The plan's model, run as the plan says; tried on the plan's tokens where something else computes.

    Longer windows than the plan's are run by what is best for them.
    """
    plan, checkpoint, length = planned.plan, planned.checkpoint, windows.length
    processes.use_threads(plan.run.threads)
    backends = Backends(plan.run.indexer, plan.run.attention)
    if length > plan.tokens.window:
        backends = Backends("auto", "auto")
    running = running_on(checkpoint, plan.run.dtype, room, backends, length)
    trial_tokens = windows.group(group).ravel().tolist()
    return load(checkpoint, planned.weights, running, length, reporter, trial_tokens, plan.run)


def _measured(
    planned: PlannedModel, measured: Evaluator, windows: Windows, settings: EvalSettings, reporter: Reporter
) -> Measured:
    """What the plan, all full and uniform cost on the windows, on probes and at all budgets where asked for.

    Raises:
        MeasurementError: a loss is NaN or infinite.
    """
    plan, group, confidence = planned.plan, settings.group, settings.gate.confidence
    probes = windows.groups[HELD_OUT_PROBES] if settings.with_probes else None
    count = _window_count(plan, windows, settings)
    evaluations = 3 * (count + (len(probes.ids) if probes else 0))
    evaluations += curve_evaluations(plan, count) if settings.with_curve else 0
    reporter.begin(evaluations, "window evaluations")
    problem = windows_problem(
        measured.sweep,
        windows,
        len(plan.model.site_layers),
        Goal(keep=1.0),
        Method(pinned=plan.pinned_sites),
    )
    losses = heldout_record(compare(problem, group, plan.pattern, windows=count), confidence)
    if losses is None:
        raise MeasurementError(f"a loss on the {GROUP_TITLES[group]} windows is NaN or infinite")
    curve = measured_curve(problem, plan, confidence) if settings.with_curve else None
    if probes is None:
        return losses, None, curve
    scores = probes_record(compare(problem, HELD_OUT_PROBES, plan.pattern), probes.kinds, confidence)
    if scores is None:
        raise MeasurementError("a loss on the probes is NaN or infinite")
    return losses, scores, curve


def _window_count(plan: Plan, windows: Windows, settings: EvalSettings) -> int:
    """How many windows are measured: all, but of those for choosing only the first ones, that the search used."""
    available = len(windows.group(settings.group))
    used = plan.search.windows if settings.group == CALIBRATION else None
    return available if used is None else min(used, available)


def _unseen_check(check: Check, probes: ProbesCheck | None, windows: Windows, text: OtherText) -> UnseenCheck:
    """A check with what its windows are."""
    return UnseenCheck(
        **dict(check),
        length=text.length,
        **vars(text.source),
        sha256=token_sha256(windows),
        probes=probes,
    )


def _keep(plan: Plan, path: Path, outcome: EvalOutcome, unseen: UnseenCheck | None, reporter: Reporter) -> None:
    """Writes a check beside its plan and into the report; where that cannot be, its result is still printed."""
    file = check_file(path)
    try:
        if unseen is not None:
            record = with_unseen_check(plan, file, unseen)
        else:
            group = outcome.settings.group
            record = with_check(plan, file, group, outcome.check, outcome.probes, outcome.curve)
        write_atomically(file, record.as_json())
        if has_report(path):
            render_beside(plan, path)
    except (OutputError, PlanError) as error:
        reporter.warn(f"what was measured is not kept beside the plan, or not in its report: {error}")
