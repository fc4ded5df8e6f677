"""One search from start to end: baseline, noise floor, removals, refinement, baselines, held-out check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import MeasurementError, SettingError
from ..groups import CALIBRATION, HELD_OUT
from ..pattern import Pattern, kept_sites, layer_ranges
from .blocks import blocks_greedy, check_blocks
from .evaluation import Evaluation, noise_floor, paired_difference
from .fast import fast_greedy
from .greedy import Step, candidate_evaluations, exact_greedy
from .measurements import Measurements
from .overlap import overlap_pattern
from .race import STANDARD_ERRORS
from .refine import Swap, refine

STRATEGIES = ("fast", "exact", "blocks")


class Evaluate(Protocol):
    """Measures patterns on a named group of windows: summed losses in nats, one per window."""

    def __call__(
        self,
        patterns: Sequence[Pattern],
        group: str,
        windows: Sequence[int] | None = None,
        last_token: bool = False,
    ) -> list[tuple[float, ...]]:
        """Losses in the order of ``patterns``, on all windows or on those named, in that order.

        ``last_token`` measures in another shape, which changes nothing but rounding.
        """


@dataclass(frozen=True)
class Goal:
    """How far to search and which step to pick; exactly one of ``keep`` and ``max_delta`` is set.

    Args:
        keep: fraction of sites that stay full.
        max_delta: pick the sparsest pattern whose loss increase, in nats per label, is at most this.
        to_one: search on as far as sites can be shared, whatever is picked.
    """

    keep: float | None = None
    max_delta: float | None = None
    to_one: bool = False


@dataclass(frozen=True)
class Method:
    """How to search.

    Args:
        strategy: one of ``STRATEGIES``.
        pinned: sites that stay full.
        standard_errors: how much worse a candidate must be to leave a race early.
        blocks: number of blocks, for the strategy of that name.
        refine_rounds: swaps at most after the removals; 0 for none.
        order: sites in the order in which an earlier search removed them, tried first by ``fast``.
        overlap: ``[sites][sites]`` share of keys selected alike, to measure overlap patterns too.
    """

    strategy: str = "fast"
    pinned: tuple[int, ...] = ()
    standard_errors: float = STANDARD_ERRORS
    blocks: int = 1
    refine_rounds: int = 0
    order: tuple[int, ...] = ()
    overlap: Sequence[Sequence[float]] | None = None

    def always_full(self, sites: int) -> frozenset[int]:
        """The sites that stay full whatever is measured: the first, the pinned, and each block's first."""
        starts = Pattern.uniform(sites, self.blocks).full if self.strategy == "blocks" else (0,)
        return frozenset((*starts, *self.pinned))

    def deepest(self, goal: Goal, sites: int) -> int:
        """How many full sites the search goes down to."""
        if goal.to_one or goal.keep is None:
            return len(self.always_full(sites))
        return kept_sites(sites, goal.keep)

    def check(self, goal: Goal, sites: int) -> None:
        """Refuses a goal that keeps fewer sites than have to stay full.

        Raises:
            SettingError: says how many of how many.
        """
        kept = sites if goal.keep is None else kept_sites(sites, goal.keep)
        if self.strategy == "blocks":
            check_blocks(self.blocks, sites, kept)
        least = len(self.always_full(sites))
        if kept < least:
            raise SettingError(
                f"{least} of {sites} sites have to stay full (the first and those pinned), but keep "
                f"{goal.keep:g} leaves {kept}",
                hint="keep more, or pin fewer",
            )


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
        noise_floor: nats per label, from measuring the baseline again in another order.
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
class Told:
    """Who is told of a search's progress."""

    step: Callable[[Step], None] = lambda step: None
    swap: Callable[[Swap], None] = lambda swap: None


def run_search(
    evaluate: Evaluate,
    labels: int,
    documents: Mapping[str, Sequence[int]],
    sites: int,
    goal: Goal,
    method: Method,
    told: Told = Told(),
    layer_windows: Callable[[], int] = lambda: 0,
    site_layers: Sequence[int] | None = None,
) -> Findings:
    """Finds which of ``sites`` stay full.

    Args:
        evaluate: losses of patterns on the windows.
        labels: labels per window.
        documents: for each group, the document that each of its windows is from.
        sites: how many sites the model has.
        goal: how far to go and what to pick.
        method: how to go about it.
        told: who is told of progress.
        layer_windows: counts decoder-layer executions so far.
        site_layers: absolute ids of the sites, for errors that name some; site numbers by default.

    Raises:
        MeasurementError: the model's own loss is not finite, or no candidate's is.
        SettingError: blocks or pinned sites that do not go with what is to be kept.
    """
    method.check(goal, sites)

    def measure(patterns: Sequence[Pattern], some: Sequence[int]) -> list[tuple[float, ...]]:
        return [_per_label(sums, labels) for sums in evaluate(patterns, CALIBRATION, some)]

    windows = len(documents[CALIBRATION])
    measurements = Measurements(measure, windows, documents[CALIBRATION])
    baseline, floor = _baseline(measurements, evaluate, labels, Pattern.all_full(sites))
    before = layer_windows()
    try:
        steps = _remove(measurements, sites, goal, method, floor, told)
    except MeasurementError as error:
        raise _naming_layers(error, site_layers) from error
    chosen = _pick(baseline, steps, goal)
    swaps = _refine(measurements, chosen, method, floor, told)
    spent = layer_windows() - before
    chosen = swaps[-1].evaluation if swaps else chosen
    reached, pinned = [step.pattern.kept for step in steps], method.pinned
    return Findings(
        baseline=baseline,
        noise_floor=floor,
        steps=tuple(steps),
        swaps=tuple(swaps),
        uniform=tuple(measurements([Pattern.uniform(sites, kept, pinned) for kept in reached])),
        overlap=tuple(measurements([overlap_pattern(method.overlap, kept, pinned) for kept in reached]))
        if method.overlap is not None
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
    """All full, and the noise floor from measuring it again in another order and shape."""
    again = range(measurements.windows)[::-1]
    baseline = measurements([full])[0]
    if baseline.finite:
        sums = evaluate([full], CALIBRATION, again, last_token=True)[0]
        second = Evaluation(full, _per_label(sums[::-1], labels))
        if second.finite:
            return baseline, noise_floor(baseline, second)
    raise MeasurementError(
        "the model's own loss on the calibration windows is NaN or infinite",
        hint="check the checkpoint, or load it with --dtype float32",
    )


def _naming_layers(error: MeasurementError, site_layers: Sequence[int] | None) -> MeasurementError:
    if not error.sites or site_layers is None:
        return error
    layers = layer_ranges([site_layers[site] for site in error.sites])
    return MeasurementError(f"every candidate's loss is NaN or infinite; layers tried: {layers}", error.hint)


def _remove(
    measurements: Measurements, sites: int, goal: Goal, method: Method, floor: float, told: Told
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
            on_step=told.step,
        )
    if method.strategy == "blocks":
        return blocks_greedy(measurements, sites, kept, method.blocks, floor, method.pinned, told.step)
    return exact_greedy(measurements, sites, kept, floor, method.pinned, told.step)


def _refine(
    measurements: Measurements, chosen: Evaluation, method: Method, floor: float, told: Told
) -> list[Swap]:
    return refine(
        measurements,
        chosen.pattern,
        method.refine_rounds,
        floor,
        method.pinned,
        method.standard_errors,
        told.swap,
    )


def _pick(baseline: Evaluation, steps: Sequence[Step], goal: Goal) -> Evaluation:
    measured = [baseline, *(step.evaluation for step in steps)]
    if goal.keep is not None:
        kept = kept_sites(len(baseline.pattern), goal.keep)
        return next(each for each in measured if each.pattern.kept == kept)
    limit = goal.max_delta or 0.0
    within = [each for each in measured if paired_difference(each, baseline).delta <= limit]
    return min(within or [baseline], key=lambda each: each.pattern.kept)


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
    sums = evaluate(patterns, group)
    return Comparison(
        *(
            Evaluation(pattern, _per_label(each, labels), tuple(documents))
            for pattern, each in zip(patterns, sums, strict=True)
        )
    )


def _per_label(sums: Sequence[float], labels: int) -> tuple[float, ...]:
    return tuple(each / labels for each in sums)
