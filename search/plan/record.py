"""Turns the findings of a search into the sections of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from ..cost import times_fewer
from ..gate import measured_increase
from ..goal import Goal, Method
from ..losses import Evaluation, paired_difference
from ..sample_size import Tie
from ..search import Comparison, Findings
from ..strategies.greedy import Step
from ..strategies.refine import Descent, Swap
from .schema import (
    LARGEST_DELTA,
    Cost,
    HeldOutRecord,
    InitRecord,
    MeasuredPattern,
    ModelIdentity,
    PlanStart,
    PlanStep,
    PlanSwap,
    PlanTie,
    ProbeRecord,
    ProbeScores,
    ProbesRecord,
    Result,
    SearchRecord,
    StudentsRecord,
)


def measured_pattern(evaluation: Evaluation, baseline: Evaluation, confidence: float) -> MeasuredPattern:
    """A pattern's loss and its paired difference to all full, with the interval at ``confidence``."""
    difference = paired_difference(evaluation, baseline)
    low, high = _ends(evaluation, baseline, confidence)
    key_loss, key_baseline = evaluation.mean("key_loss"), baseline.mean("key_loss")
    return MeasuredPattern(
        kept=evaluation.pattern.kept,
        pattern=str(evaluation.pattern),
        loss=evaluation.loss,
        delta=difference.delta,
        standard_error=difference.standard_error,
        low=low,
        high=high,
        divergence=evaluation.mean("divergence"),
        agreement=evaluation.mean("agreement"),
        key_delta=None if key_loss is None or key_baseline is None else key_loss - key_baseline,
    )


def _ends(evaluation: Evaluation, baseline: Evaluation, confidence: float) -> tuple[float | None, float | None]:
    """The ends of the interval of a loss increase; None where one document is all there is."""
    increase = measured_increase(evaluation, baseline, confidence)
    low, high = (
        end if end is not None and abs(end) < LARGEST_DELTA else None for end in (increase.low, increase.high)
    )
    return low, high


def search_record(
    findings: Findings,
    method: Method,
    site_layers: Sequence[int],
    init: InitRecord | None,
    students: StudentsRecord | None = None,
) -> SearchRecord:
    """The steps, with sites spelled as absolute layer ids too."""

    def measured(evaluations: Sequence[Evaluation]) -> list[MeasuredPattern]:
        finite = [evaluation for evaluation in evaluations if evaluation.finite]
        return [measured_pattern(evaluation, findings.baseline, method.confidence) for evaluation in finite]

    return SearchRecord(
        strategy=method.strategy,
        objective=method.objective,
        confidence=method.confidence,
        gate=method.gate,
        standard_errors=method.standard_errors,
        blocks=method.blocks,
        refine_rounds=method.refine_rounds,
        pinned_layers=[site_layers[site] for site in method.pinned],
        init=init,
        baseline_loss=findings.baseline.loss,
        noise_floor=findings.noise_floor,
        steps=[_step(step, findings.baseline, site_layers, method.confidence) for step in findings.steps],
        swaps=[_swap(swap, findings.baseline, site_layers, method.confidence) for swap in findings.swaps],
        starts=[_start(descent, findings.chosen) for descent in findings.descents],
        windows=findings.windows,
        ties=[_tie(tie, site_layers) for tie in findings.ties],
        decided=findings.decided,
        surrogate=method.surrogate if method.layer_costs else None,
        dp=measured(findings.surrogate),
        kept_chances=[round(chance, 4) for chance in findings.kept_chances],
        uniform=measured(findings.uniform),
        overlap=measured(findings.overlap),
        overlap_matrix=[[round(share, 4) for share in row] for row in method.overlap_matrix or ()],
        students=students,
    )


def result_record(findings: Findings, goal: Goal, model: ModelIdentity, confidence: float) -> Result:
    """The pattern picked, with uniform interleaving at the same number of full sites beside it."""
    chosen = findings.chosen
    kept = chosen.pattern.kept
    uniform = next((evaluation for evaluation in findings.uniform if evaluation.pattern.kept == kept), None)
    if kept == len(chosen.pattern):
        uniform = findings.baseline
    return Result(
        **measured_pattern(chosen, findings.baseline, confidence).model_dump(),
        keep=goal.keep,
        max_delta=goal.max_delta,
        sites=len(chosen.pattern),
        layers=model.layers,
        layer_pattern=chosen.pattern.over_layers(model.site_layers, model.layers, model.shared_layers),
        uniform=measured_pattern(uniform, findings.baseline, confidence)
        if uniform is not None and uniform.finite
        else None,
    )


def heldout_record(heldout: Comparison | None, confidence: float) -> HeldOutRecord | None:
    """A comparison as the plan and eval tell it; None where it was not made or gave no numbers."""
    if heldout is None or not (heldout.full.finite and heldout.plan.finite and heldout.uniform.finite):
        return None
    surrogate = heldout.surrogate
    return HeldOutRecord(
        baseline_loss=heldout.full.loss,
        plan=measured_pattern(heldout.plan, heldout.full, confidence),
        uniform=measured_pattern(heldout.uniform, heldout.full, confidence),
        dp=measured_pattern(surrogate, heldout.full, confidence) if surrogate and surrogate.finite else None,
    )


def _tie(tie: Tie, site_layers: Sequence[int]) -> PlanTie:
    windows = int(tie.windows) if tie.windows < LARGEST_DELTA else None
    return PlanTie(removed_layer=site_layers[tie.removed], kept_layer=site_layers[tie.kept], windows=windows)


def _start(descent: Descent, chosen: Evaluation) -> PlanStart:
    return PlanStart(
        name=descent.name,
        start=str(descent.start.pattern),
        start_cost=descent.start.cost,
        end=str(descent.end.pattern),
        end_cost=descent.end.cost,
        swaps=len(descent.swaps),
        calibration_loss=chosen.loss if descent.end.pattern == chosen.pattern else None,
    )


def _swap(swap: Swap, baseline: Evaluation, site_layers: Sequence[int], confidence: float) -> PlanSwap:
    return PlanSwap(
        **measured_pattern(swap.evaluation, baseline, confidence).model_dump(),
        removed_layer=site_layers[swap.removed],
        restored_layer=site_layers[swap.restored],
    )


def cost_record(
    findings: Findings,
    method: Method,
    evaluations: int,
    layer_windows: int,
    tokens: int,
    layers: int,
    layer_costs: int = 0,
    sweeps: int = 0,
    sweep_bytes: int = 0,
) -> Cost:
    """What the search takes, beside what Algorithm 1 takes to the same depth.

    Args:
        findings: of the search.
        method: how it went about it.
        evaluations: pattern x window pairs asked for.
        layer_windows: decoder-layer executions that they take.
        tokens: tokens run, of all pairs.
        layers: decoder layers of the model.
        layer_costs: decoder-layer executions that measuring layer costs takes, see ``layer_cost_runs``.
        sweeps: that all of it takes.
        sweep_bytes: of all decoder layers as they are stored.
    """
    algorithm_1 = findings.algorithm_1_evaluations * findings.windows
    spent = findings.search_layer_windows + (layer_costs if method.costs_choose else 0)
    return Cost(
        window_evaluations=evaluations,
        layer_windows=layer_windows + layer_costs,
        tokens=tokens,
        search_layer_windows=spent,
        algorithm_1_window_evaluations=algorithm_1,
        algorithm_1_layer_windows=algorithm_1 * layers,
        fewer=round(times_fewer(algorithm_1 * layers, spent), 2),
        sweeps=sweeps,
        weight_bytes=sweeps * sweep_bytes,
    )


def _step(step: Step, baseline: Evaluation, site_layers: Sequence[int], confidence: float) -> PlanStep:
    return PlanStep(
        **measured_pattern(step.evaluation, baseline, confidence).model_dump(),
        removed_site=step.removed,
        removed_layer=site_layers[step.removed],
        runner_up_layer=None if step.runner_up is None else site_layers[step.runner_up],
        margin=step.margin.delta if step.margin else None,
        margin_standard_error=step.margin.standard_error if step.margin else None,
        tied_layers=[site_layers[site] for site in step.tied],
        undecided_layers=[site_layers[site] for site in step.undecided],
    )


def probes_record(probes: Comparison | None, kinds: Sequence[str], confidence: float) -> ProbesRecord | None:
    """The check on probes, by kind; None where it was not made or gave no numbers.

    Args:
        probes: all full, the plan and uniform, a window a probe, per answer token.
        kinds: of each probe.
        confidence: of the intervals.
    """
    if probes is None or not (probes.full.finite and probes.plan.finite and probes.uniform.finite):
        return None

    surrogate = probes.surrogate

    def record(kind: str, numbers: Sequence[int]) -> ProbeRecord:
        full, plan, uniform = (part.only(numbers) for part in (probes.full, probes.plan, probes.uniform))
        difference, (low, high) = paired_difference(plan, full), _ends(plan, full, confidence)
        return ProbeRecord(
            kind=kind,
            probes=len(numbers),
            full=_probe_scores(full),
            plan=_probe_scores(plan),
            uniform=_probe_scores(uniform),
            dp=_probe_scores(surrogate.only(numbers)) if surrogate and surrogate.finite else None,
            delta=difference.delta,
            standard_error=difference.standard_error,
            low=low,
            high=high,
        )

    of_kind = {kind: [number for number, other in enumerate(kinds) if other == kind] for kind in kinds}
    return ProbesRecord(
        pattern=str(probes.plan.pattern),
        kinds=[record(kind, numbers) for kind, numbers in of_kind.items()],
        all=record("all", range(len(kinds))),
    )


def _probe_scores(evaluation: Evaluation) -> ProbeScores:
    return ProbeScores(loss=evaluation.loss, accuracy=evaluation.mean("correct") or 0.0)
