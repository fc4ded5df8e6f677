"""One search from start to end: baseline, noise floor, removals, refinement, baselines, held-out check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import MeasurementError
from ..evaluate import CALIBRATION, HELD_OUT, Evaluate
from ..pattern import Pattern, kept_sites, layer_ranges
from .goal import Goal, Method
from .losses import Evaluation, Measurements, noise_floor, paired_difference
from .strategies.blocks import blocks_greedy
from .strategies.fast import fast_greedy
from .strategies.greedy import Step, candidate_evaluations, exact_greedy
from .strategies.overlap import overlap_pattern
from .strategies.refine import Swap, refine


@dataclass(frozen=True)
class Comparison:
    """A pattern beside all full and uniform interleaving, on the same windows."""

    full: Evaluation
    plan: Evaluation
    uniform: Evaluation


@dataclass(frozen=True)
class Findings:
    """Everything a search measured.

    Args:
        baseline: all sites full.
        noise_floor: nats per label, from measuring the baseline again in another shape.
        steps: the removals, from all full downwards.
        swaps: what refinement changed in the pattern picked, in order.
        uniform: patterns spread evenly around the pinned sites, one per number of full sites that the steps reach.
        overlap: the patterns that overlap alone would choose, likewise; empty unless asked for.
        chosen: the pattern picked, measured on the calibration windows.
        heldout: the check on other windows; None where there are none.
        search_layer_windows: decoder-layer executions of the removals and swaps alone.
        algorithm_1_evaluations: of patterns on all windows, that Algorithm 1 takes for the same removals.
    """

    baseline: Evaluation
    noise_floor: float
    steps: tuple[Step, ...]
    swaps: tuple[Swap, ...]
    uniform: tuple[Evaluation, ...]
    overlap: tuple[Evaluation, ...]
    chosen: Evaluation
    heldout: Comparison | None
    search_layer_windows: int
    algorithm_1_evaluations: int


@dataclass(frozen=True)
class SearchProgress:
    """What is called as a search goes on: ``step`` after each removal, ``swap`` after each swap of refinement."""

    step: Callable[[Step], None] = lambda step: None
    swap: Callable[[Swap], None] = lambda swap: None


def run_search(
    evaluate: Evaluate,
    labels: int,
    documents: Mapping[str, Sequence[int]],
    sites: int,
    goal: Goal,
    method: Method,
    progress: SearchProgress = SearchProgress(),
    layer_windows: Callable[[], int] = lambda: 0,
    site_layers: Sequence[int] | None = None,
) -> Findings:
    """Finds which of ``sites`` stay full.

    Args:
        evaluate: losses of patterns on the windows.
        labels: labels per window.
        documents: of each group, the document that each of its windows is from.
        sites: how many sites the model has.
        goal: how far to go and what to pick.
        method: how to go about it.
        progress: what is called as the search goes on.
        layer_windows: counts decoder-layer executions so far.
        site_layers: absolute ids of the sites, for errors that name some; site numbers by default.

    Raises:
        MeasurementError: the model's own loss is not finite, or no candidate's is.
        SettingError: blocks or pinned sites that do not go with what is to be kept.
    """
    method.check(goal, sites)

    def measure(patterns: Sequence[Pattern], windows: Sequence[int]) -> list[tuple[float, ...]]:
        return [_per_label(sums, labels) for sums in evaluate(patterns, CALIBRATION, windows)]

    measurements = Measurements(measure, len(documents[CALIBRATION]), documents[CALIBRATION])
    baseline, floor = _baseline(measurements, evaluate, labels, Pattern.all_full(sites))
    layer_windows_before = layer_windows()
    try:
        steps = _remove(measurements, sites, goal, method, floor, progress)
    except MeasurementError as error:
        raise _naming_layers(error, site_layers) from error
    chosen = _pick(baseline, steps, goal)
    swaps = _refine(measurements, chosen, method, floor, progress)
    spent = layer_windows() - layer_windows_before
    chosen = swaps[-1].evaluation if swaps else chosen
    reached, pinned = [step.pattern.kept for step in steps], method.pinned
    return Findings(
        baseline=baseline,
        noise_floor=floor,
        steps=tuple(steps),
        swaps=tuple(swaps),
        uniform=tuple(measurements([Pattern.uniform(sites, kept, pinned) for kept in reached])),
        overlap=tuple(measurements([overlap_pattern(method.overlap_matrix, kept, pinned) for kept in reached]))
        if method.overlap_matrix is not None
        else (),
        chosen=chosen,
        heldout=compare(evaluate, HELD_OUT, labels, documents[HELD_OUT], chosen.pattern, pinned)
        if documents[HELD_OUT]
        else None,
        search_layer_windows=spent,
        algorithm_1_evaluations=candidate_evaluations(sites, min(reached, default=sites), pinned),
    )


def _baseline(
    measurements: Measurements, evaluate: Evaluate, labels: int, full: Pattern
) -> tuple[Evaluation, float]:
    """All full, and the noise floor from measuring it again in another shape."""
    backwards = range(measurements.windows)[::-1]
    baseline = measurements([full])[0]
    if baseline.finite:
        sums = evaluate([full], CALIBRATION, backwards, last_token=True)[0]
        repetition = Evaluation(full, _per_label(sums[::-1], labels))
        if repetition.finite:
            return baseline, noise_floor(baseline, repetition)
    raise MeasurementError(
        "the model's own loss on the calibration windows is NaN or infinite",
        hint="check the checkpoint, or load it with --dtype float32",
    )


def _naming_layers(error: MeasurementError, site_layers: Sequence[int] | None) -> MeasurementError:
    """``error`` with its sites named as layers, where the model's layers are known."""
    if not error.sites or site_layers is None:
        return error
    layers = layer_ranges([site_layers[site] for site in error.sites])
    return MeasurementError(f"every candidate's loss is NaN or infinite; layers tried: {layers}", error.hint)


def _remove(
    measurements: Measurements, sites: int, goal: Goal, method: Method, floor: float, progress: SearchProgress
) -> list[Step]:
    kept = method.deepest(goal, sites)
    if method.strategy == "fast":
        return fast_greedy(
            measurements,
            sites,
            kept,
            floor,
            method.pinned,
            order=method.order,
            standard_errors=method.standard_errors,
            on_step=progress.step,
        )
    if method.strategy == "blocks":
        return blocks_greedy(measurements, sites, kept, method.blocks, floor, method.pinned, progress.step)
    return exact_greedy(measurements, sites, kept, floor, method.pinned, progress.step)


def _refine(
    measurements: Measurements, chosen: Evaluation, method: Method, floor: float, progress: SearchProgress
) -> list[Swap]:
    return refine(
        measurements,
        chosen.pattern,
        method.refine_rounds,
        floor,
        method.pinned,
        method.standard_errors,
        progress.swap,
    )


def _pick(baseline: Evaluation, steps: Sequence[Step], goal: Goal) -> Evaluation:
    """The pattern, of all full and the steps, that keeps what was asked for, or the sparsest within max_delta."""
    evaluations = [baseline, *(step.evaluation for step in steps)]
    if goal.keep is not None:
        kept = kept_sites(len(baseline.pattern), goal.keep)
        return next(evaluation for evaluation in evaluations if evaluation.pattern.kept == kept)
    limit = goal.max_delta or 0.0
    within = [evaluation for evaluation in evaluations if paired_difference(evaluation, baseline).delta <= limit]
    return min(within or [baseline], key=lambda evaluation: evaluation.pattern.kept)


def compare(
    evaluate: Evaluate,
    group: str,
    labels: int,
    documents: Sequence[int],
    chosen: Pattern,
    pinned: Sequence[int] = (),
) -> Comparison:
    """Measures ``chosen``, all full and uniform interleaving around ``pinned`` on the windows of ``group``."""
    sites = len(chosen)
    patterns = [Pattern.all_full(sites), chosen, Pattern.uniform(sites, chosen.kept, pinned)]
    evaluations = (
        Evaluation(pattern, _per_label(sums, labels), tuple(documents))
        for pattern, sums in zip(patterns, evaluate(patterns, group), strict=True)
    )
    return Comparison(*evaluations)


def _per_label(sums: Sequence[float], labels: int) -> tuple[float, ...]:
    return tuple(total / labels for total in sums)
