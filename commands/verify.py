"""The verify command: whether an old plan holds on a new checkpoint, from a few evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..calibrate.guess import unigram_loss
from ..calibrate.tokenizers import differing_id
from ..calibrate.windows import Windows
from ..dsa.checkpoint.config import Trust, load_tokenizer
from ..dsa.stream.room import Room
from ..errors import DatasetError, GateError, MeasurementError, ModelError, PlanError, SettingError
from ..evaluate import GROUP_TITLES, HELD_OUT
from ..pattern import Pattern
from ..search.gate import Gate
from ..search.goal import Goal, Method
from ..search.intervals import interval
from ..search.losses import Evaluation, loss_increases
from ..search.plan.record import heldout_record, measured_pattern
from ..search.plan.schema import HeldOutRecord, MeasuredPattern, Plan
from ..search.report.checks import check_file, checks_of
from ..search.search import Comparison, Problem
from ..search.upkeep.difference import LossChange, WindowIncreases, at_confidence, loss_change
from ..search.upkeep.neighbours import Neighbour, nearest_swaps
from ..search.upkeep.paired import KeptLosses
from ..system.console import Reporter
from .eval import check_groups, model_for, unseen_windows
from .job.measure import evaluator
from .job.planned import PlannedModel, open_planned
from .job.prepare import announce
from .job.windows import check_documents, windows_problem
from .verify_settings import VerifySettings


@dataclass(frozen=True)
class Rival:
    """Another pattern as sparse as the plan's, and what the plan's costs beyond it, paired, in nats per label.

    Args:
        name: what it is.
        pattern: its loss and its increase over all full.
        delta: the plan's loss less its own.
        low: lower end of that difference's interval, made wide enough for all rivals together; None where one
            document gives none.
    """

    name: str
    pattern: MeasuredPattern
    delta: float
    low: float | None

    def is_better(self, gate: Gate, tolerance: float) -> bool:
        """Whether the plan's pattern is surely, or by the estimate, dearer by more than ``tolerance``."""
        end = self.delta if gate.kind == "estimate" else self.low
        return end is not None and end > tolerance


@dataclass(frozen=True)
class VerifyOutcome:
    """An old plan on a new checkpoint.

    Args:
        plan: as read.
        model: the new checkpoint's name.
        settings: what it was held to.
        length: tokens per window.
        windows: how many.
        losses: all full, the plan and uniform on the new checkpoint.
        drift: how the plan's increase differs from the old one; None where the old one is not known.
        rivals: uniform and swaps.
        evaluations: window evaluations that it took.
        seconds: of measuring.
    """

    plan: Plan
    model: str
    settings: VerifySettings
    length: int
    windows: int
    losses: HeldOutRecord
    drift: LossChange | None
    rivals: tuple[Rival, ...]
    evaluations: int
    seconds: float

    @property
    def reasons(self) -> list[str]:
        """Why to search again; none where the plan holds."""
        asked, gate, increase = self.settings.asked, self.settings.asked.gate, self.losses.plan
        tolerance, reasons = self.settings.tolerance, []
        if asked.max_delta is not None and not gate.passes(increase, asked.max_delta):
            reasons.append(gate.failure(increase, asked.max_delta, "--max-delta", "the plan's loss"))
        if self.drift is not None:
            end = self.drift.delta if gate.kind == "estimate" else self.drift.low
            if end is not None and end > tolerance:
                surely = "" if gate.kind == "estimate" else f", surely by more than {end:+.5f}"
                grown = f"the plan's loss increase grew by {self.drift.delta:+.5f}{surely}"
                reasons.append(f"{grown}, above --tolerance {tolerance:g}")
        better = [rival for rival in self.rivals if rival.is_better(gate, tolerance)]
        if better:
            best = max(better, key=lambda rival: rival.delta)
            less = f"{best.name} costs {best.delta:.5f} less than the plan"
            reasons.append(f"{less}, above --tolerance {tolerance:g}")
        return reasons

    def hold(self) -> None:
        """Ends a plan that no longer holds.

        Raises:
            GateError: says why, and how to search again.
        """
        if reasons := self.reasons:
            keep = self.plan.result.keep
            goal = f"--keep {keep:g}" if keep is not None else f"--max-delta {self.plan.result.max_delta:g}"
            raise GateError(
                f"search again: {'; '.join(reasons)}",
                hint=f"indexcache search --model {self.model} {goal} --init PLAN starts from this plan",
            )


def verify(
    planned: PlannedModel, path: Path, settings: VerifySettings, room: Room, reporter: Reporter
) -> VerifyOutcome:
    """Measures the plan in the file ``path`` on another checkpoint than its own, beside uniform and a few swaps.

    Raises:
        IdentityError: the checkpoint has other sites; or the tokens are not the plan's.
        DatasetError: the frozen tokens are of another tokenizer.
        SettingError: nothing says what the increase was, or one document gives no interval.
        IndexcacheError: one of its other kinds.
    """
    plan, checkpoint = planned.plan, planned.checkpoint
    _check_trained(plan)
    planned.check_layout()
    announce(checkpoint, reporter)
    before = None if settings.asked.text is not None else _old_increase(plan, path)
    if before is None and settings.asked.text is None and settings.asked.max_delta is None:
        raise SettingError(
            "the plan has no held-out loss increase to compare with",
            hint="give --max-delta, or measure the plan on its own checkpoint first: indexcache eval",
        )
    windows = _windows(planned, path, settings, reporter)
    check_groups(windows, settings.asked)
    check_documents(windows, HELD_OUT, settings.tolerance, "--tolerance", settings.asked.gate.kind)
    loaded = model_for(planned, windows, HELD_OUT, room, reporter)
    swaps = nearest_swaps(plan, settings.swaps)
    count = len(windows.group(HELD_OUT))
    patterns = _patterns(plan, swaps)
    reporter.begin(len(patterns) * count, "window evaluations")
    problem = windows_problem(
        evaluator(loaded, windows, reporter).sweep,
        windows,
        len(plan.model.site_layers),
        Goal(keep=1.0),
        Method(pinned=plan.pinned_sites),
    )
    began = time.monotonic()
    measured = _measured(problem, patterns)
    seconds = time.monotonic() - began
    if before is not None:
        guess = unigram_loss(windows.heldout[:, 1:].ravel(), windows.calibration.ravel(), checkpoint.vocabulary)
        check_fit(before.loss - before.delta, measured[0].loss, guess, checkpoint.model_id)
    return _outcome(planned, path, settings, windows, (measured, swaps, before), seconds)


def _check_trained(plan: Plan) -> None:
    """Refuses a plan whose indexers were trained for its pattern: a new checkpoint does not have them.

    Raises:
        PlanError: names the command that makes a new one.
    """
    if plan.distilled is not None or plan.search.students is not None:
        raise PlanError(
            "the plan holds with indexers that were distilled for it, which a new checkpoint does not have",
            hint="distill them in the new checkpoint, from a plan of that: indexcache distill PLAN --out DIR",
        )


def _old_increase(plan: Plan, path: Path) -> MeasuredPattern | None:
    """The plan's increase on its own checkpoint and its own held-out tokens, from the search or else from eval."""
    if plan.heldout is not None:
        return plan.heldout.plan
    checks, _ = checks_of(plan, check_file(path))
    return None if checks is None or checks.heldout is None else checks.heldout.losses.plan


def _windows(planned: PlannedModel, path: Path, settings: VerifySettings, reporter: Reporter) -> Windows:
    """The plan's own windows, if they mean the same to the new checkpoint's tokenizer; or those of other text.

    Raises:
        DatasetError: they do not; or there are no tokens, or too little text.
    """
    try:
        windows = planned.windows(path.parent)
        if not len(windows.heldout) and settings.asked.text is None:
            raise DatasetError("the plan has no held-out windows")
        _check_tokenizer(planned, windows, reporter)
    except DatasetError as error:
        if settings.asked.text is None:
            raise DatasetError(str(error), hint="measure other text with --dataset") from None
        windows = Windows({})  # what the search saw is not known to this tokenizer, so that none of it is left out
    if settings.asked.text is None:
        return windows
    return unseen_windows(planned, windows, settings.asked, settings.asked.text, reporter)


def _check_tokenizer(planned: PlannedModel, windows: Windows, reporter: Reporter) -> None:
    """Compares the new checkpoint's tokenizer with that of the plan's own checkpoint, where that can be had.

    Raises:
        DatasetError: a frozen token is another one to it.
    """
    new = planned.checkpoint
    try:
        old = open_planned(planned.plan, None, Trust()).checkpoint
        differing = differing_id(load_tokenizer(old), load_tokenizer(new), windows.heldout)
    except ModelError:
        reporter.say(f"{planned.plan.model.id} is not at hand: only the loss can tell another tokenizer")
        return
    if differing is not None:
        raise DatasetError(
            f"the tokenizer of {new.model_id!r} is another than the plan's: the frozen token {differing} differs"
        )


def check_fit(old_loss: float, new_loss: float, guess: float, model: str) -> None:
    """Refuses frozen tokens that a checkpoint predicts no better than their frequencies, where the old one did.

    Args:
        old_loss: of all full on its own checkpoint, nats per token.
        new_loss: on the new one.
        guess: what the tokens' frequencies alone give.
        model: the new checkpoint's name.

    Raises:
        DatasetError: they are likely of another tokenizer.
    """
    if old_loss < guess <= new_loss:
        raise DatasetError(
            f"{model!r} predicts the frozen tokens no better than their frequencies do ({new_loss:.2f} and "
            f"{guess:.2f} nats per token, {old_loss:.2f} before): its tokenizer is likely another",
            hint="measure other text with --dataset",
        )


def _patterns(plan: Plan, swaps: Sequence[Neighbour]) -> list[Pattern]:
    """All full, the plan's, uniform around the pinned sites, and the swaps."""
    sites = len(plan.model.site_layers)
    uniform = Pattern.uniform(sites, plan.result.kept, plan.pinned_sites)
    return [Pattern.all_full(sites), plan.pattern, uniform, *(swap.pattern for swap in swaps)]


def _measured(problem: Problem, patterns: Sequence[Pattern]) -> list[Evaluation]:
    """Each pattern on all held-out windows, in one sweep.

    Raises:
        MeasurementError: a loss is NaN or infinite.
    """
    measured = problem.measurements(HELD_OUT)(patterns)
    if not all(evaluation.finite for evaluation in measured):
        raise MeasurementError(f"a loss on the {GROUP_TITLES[HELD_OUT]} windows is NaN or infinite")
    return measured


def _outcome(
    planned: PlannedModel,
    path: Path,
    settings: VerifySettings,
    windows: Windows,
    measurements: tuple[list[Evaluation], list[Neighbour], MeasuredPattern | None],
    seconds: float,
) -> VerifyOutcome:
    (full, chosen, uniform, *others), swaps, before = measurements
    plan, confidence = planned.plan, settings.asked.gate.confidence
    losses = heldout_record(Comparison(full, chosen, uniform), confidence)
    if losses is None:
        raise MeasurementError(f"a loss on the {GROUP_TITLES[HELD_OUT]} windows is NaN or infinite")
    drift = None
    if before is not None:
        old = KeptLosses(plan, path.parent).increases(HELD_OUT, str(chosen.pattern))
        increases = None if old is None else WindowIncreases(old, loss_increases(chosen, full), chosen.documents)
        drift = loss_change(at_confidence(plan, before, confidence), losses.plan, increases, confidence)
    names = [f"layer {swap.restored_layer} in the place of {swap.removed_layer}" for swap in swaps]
    rivals = [
        (name, rival)
        for name, rival in zip(["uniform", *names], [uniform, *others], strict=True)
        if rival.pattern != chosen.pattern
    ]
    return VerifyOutcome(
        plan=plan,
        model=planned.checkpoint.model_id,
        settings=settings,
        length=windows.length,
        windows=len(windows.group(HELD_OUT)),
        losses=losses,
        drift=drift,
        rivals=tuple(_rival(name, rival, chosen, full, confidence, len(rivals)) for name, rival in rivals),
        evaluations=(3 + len(others)) * len(windows.group(HELD_OUT)),
        seconds=seconds,
    )


def _rival(
    name: str, rival: Evaluation, chosen: Evaluation, full: Evaluation, confidence: float, rivals: int
) -> Rival:
    """One of ``rivals`` patterns beside the plan's; each of them could seem better by chance (Bonferroni)."""
    differences = loss_increases(chosen, rival)
    ends = interval(differences, chosen.documents, 1 - (1 - confidence) / rivals)
    low = None if math.isinf(ends.low) else ends.low
    return Rival(name, measured_pattern(rival, full, confidence), math.fsum(differences) / len(differences), low)
