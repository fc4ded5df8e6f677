"""Turns the findings of a search into the sections of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from ..cost import times_fewer
from ..goal import Goal, Method
from ..losses import Evaluation, paired_difference
from ..search import Comparison, Findings
from ..strategies.greedy import Step
from ..strategies.refine import Swap
from .schema import (
    Cost,
    HeldOutRecord,
    InitRecord,
    MeasuredPattern,
    ModelIdentity,
    PlanStep,
    PlanSwap,
    Result,
    SearchRecord,
)


def measured_pattern(evaluation: Evaluation, baseline: Evaluation) -> MeasuredPattern:
    """A pattern's loss and its paired difference to all full."""
    difference = paired_difference(evaluation, baseline)
    return MeasuredPattern(
        kept=evaluation.pattern.kept,
        pattern=str(evaluation.pattern),
        loss=evaluation.loss,
        delta=difference.delta,
        standard_error=difference.standard_error,
    )


def search_record(
    findings: Findings, method: Method, site_layers: Sequence[int], init: InitRecord | None
) -> SearchRecord:
    """The steps, with sites spelled as absolute layer ids too."""
    return SearchRecord(
        strategy=method.strategy,
        standard_errors=method.standard_errors,
        blocks=method.blocks,
        refine_rounds=method.refine_rounds,
        pinned_layers=[site_layers[site] for site in method.pinned],
        init=init,
        baseline_loss=findings.baseline.loss,
        noise_floor=findings.noise_floor,
        steps=[_step(step, findings.baseline, site_layers) for step in findings.steps],
        swaps=[_swap(swap, findings.baseline, site_layers) for swap in findings.swaps],
        uniform=[
            measured_pattern(evaluation, findings.baseline) for evaluation in findings.uniform if evaluation.finite
        ],
        overlap=[
            measured_pattern(evaluation, findings.baseline) for evaluation in findings.overlap if evaluation.finite
        ],
        overlap_matrix=[[round(share, 4) for share in row] for row in method.overlap_matrix or ()],
    )


def result_record(findings: Findings, goal: Goal, model: ModelIdentity) -> Result:
    """The pattern picked, with uniform interleaving at the same number of full sites beside it."""
    chosen = findings.chosen
    kept = chosen.pattern.kept
    uniform = next((evaluation for evaluation in findings.uniform if evaluation.pattern.kept == kept), None)
    if kept == len(chosen.pattern):
        uniform = findings.baseline
    return Result(
        **measured_pattern(chosen, findings.baseline).model_dump(),
        keep=goal.keep,
        max_delta=goal.max_delta,
        sites=len(chosen.pattern),
        layers=model.layers,
        layer_pattern=chosen.pattern.over_layers(model.site_layers, model.layers, model.shared_layers),
        uniform=measured_pattern(uniform, findings.baseline) if uniform is not None and uniform.finite else None,
    )


def heldout_record(heldout: Comparison | None) -> HeldOutRecord | None:
    """A comparison as the plan and eval tell it; None where it was not made or gave no numbers."""
    if heldout is None or not (heldout.full.finite and heldout.plan.finite and heldout.uniform.finite):
        return None
    return HeldOutRecord(
        baseline_loss=heldout.full.loss,
        plan=measured_pattern(heldout.plan, heldout.full),
        uniform=measured_pattern(heldout.uniform, heldout.full),
    )


def _swap(swap: Swap, baseline: Evaluation, site_layers: Sequence[int]) -> PlanSwap:
    return PlanSwap(
        **measured_pattern(swap.evaluation, baseline).model_dump(),
        removed_layer=site_layers[swap.removed],
        restored_layer=site_layers[swap.restored],
    )


def cost_record(
    findings: Findings, evaluations: int, layer_windows: int, tokens: int, windows: int, layers: int
) -> Cost:
    """What the search takes, beside what Algorithm 1 takes to the same depth.

    Args:
        findings: of the search.
        evaluations: pattern x window pairs asked for.
        layer_windows: decoder-layer executions that they take.
        tokens: tokens run, of all pairs.
        windows: calibration windows.
        layers: decoder layers of the model.
    """
    algorithm_1, spent = findings.algorithm_1_evaluations * windows, findings.search_layer_windows
    return Cost(
        window_evaluations=evaluations,
        layer_windows=layer_windows,
        tokens=tokens,
        search_layer_windows=spent,
        algorithm_1_window_evaluations=algorithm_1,
        algorithm_1_layer_windows=algorithm_1 * layers,
        fewer=round(times_fewer(algorithm_1 * layers, spent), 2),
    )


def _step(step: Step, baseline: Evaluation, site_layers: Sequence[int]) -> PlanStep:
    return PlanStep(
        **measured_pattern(step.evaluation, baseline).model_dump(),
        removed_site=step.removed,
        removed_layer=site_layers[step.removed],
        runner_up_layer=None if step.runner_up is None else site_layers[step.runner_up],
        margin=step.margin.delta if step.margin else None,
        margin_standard_error=step.margin.standard_error if step.margin else None,
        tied_layers=[site_layers[site] for site in step.tied],
    )
