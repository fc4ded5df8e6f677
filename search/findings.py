"""One search from start to end: baseline, noise floor, greedy steps, uniform patterns, held-out check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import MeasurementError
from ..pattern import Pattern, kept_sites
from .evaluation import Evaluation, noise_floor, paired_difference
from .greedy import Step, candidate_evaluations, exact_greedy

CALIBRATION = "calibration"
HELD_OUT = "heldout"


class Evaluate(Protocol):
    """Measures patterns on a named group of windows: summed losses in nats, one per window."""

    def __call__(self, patterns: Sequence[Pattern], group: str, reverse: bool = False) -> list[tuple[float, ...]]:
        """Losses in the order of ``patterns``; ``reverse`` visits the windows in the opposite order."""


@dataclass(frozen=True)
class Goal:
    """How far to search and which step to pick; exactly one of ``keep`` and ``max_delta`` is set.

    Args:
        keep: fraction of sites that stay full.
        max_delta: pick the sparsest pattern whose loss increase, in nats per label, is at most this.
        to_one: search on to a single full site, whatever is picked.
    """

    keep: float | None = None
    max_delta: float | None = None
    to_one: bool = False

    def deepest(self, sites: int) -> int:
        """How many full sites the search goes down to."""
        return 1 if self.to_one or self.keep is None else kept_sites(sites, self.keep)


@dataclass(frozen=True)
class HeldOut:
    """Losses on windows that the search did not see."""

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
        uniform: evenly spread patterns, one per number of full sites that the steps reach.
        chosen: the pattern picked, measured on the calibration windows.
        heldout: the check on other windows; None where there are none.
    """

    baseline: Evaluation
    noise_floor: float
    steps: tuple[Step, ...]
    uniform: tuple[Evaluation, ...]
    chosen: Evaluation
    heldout: HeldOut | None


def planned_evaluations(sites: int, goal: Goal) -> int:
    """Evaluations on calibration windows that ``run_search`` takes, for a progress bar."""
    deepest = goal.deepest(sites)
    return 2 + candidate_evaluations(sites, deepest) + (sites - deepest)


def run_search(
    evaluate: Evaluate,
    labels: int,
    sites: int,
    goal: Goal,
    heldout: bool,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Findings:
    """Finds which of ``sites`` stay full.

    Args:
        evaluate: losses of patterns on the windows.
        labels: labels per window.
        sites: how many sites the model has.
        goal: how far to go and what to pick.
        heldout: whether there are held-out windows to check the result on.
        on_step: told of each committed step.

    Raises:
        MeasurementError: the model's own loss is not finite, or no candidate's is.
    """

    def measure(patterns: Sequence[Pattern], group: str = CALIBRATION, reverse: bool = False) -> list[Evaluation]:
        sums = evaluate(patterns, group, reverse)
        return [
            Evaluation(pattern, tuple(each / labels for each in windows))
            for pattern, windows in zip(patterns, sums, strict=True)
        ]

    full = Pattern.all_full(sites)
    baseline = measure([full])[0]
    if not baseline.finite:
        raise MeasurementError(
            "the model's own loss on the calibration windows is NaN or infinite",
            hint="check the checkpoint, or load it with --dtype float32",
        )
    floor = noise_floor(baseline, measure([full], reverse=True)[0])
    steps = tuple(exact_greedy(measure, sites, goal.deepest(sites), floor, on_step))
    evened = [Pattern.uniform(sites, step.pattern.kept) for step in steps]
    uniform = tuple(measure(evened)) if evened else ()
    chosen = _pick(baseline, steps, goal)
    return Findings(
        baseline=baseline,
        noise_floor=floor,
        steps=steps,
        uniform=uniform,
        chosen=chosen,
        heldout=_check(measure, chosen.pattern) if heldout else None,
    )


def _pick(baseline: Evaluation, steps: Sequence[Step], goal: Goal) -> Evaluation:
    measured = [baseline, *(step.evaluation for step in steps)]
    if goal.keep is not None:
        kept = kept_sites(len(baseline.pattern), goal.keep)
        return next(each for each in measured if each.pattern.kept == kept)
    limit = goal.max_delta or 0.0
    within = [each for each in measured if paired_difference(each, baseline).delta <= limit]
    return min(within or [baseline], key=lambda each: each.pattern.kept)


def _check(measure: Callable[..., list[Evaluation]], chosen: Pattern) -> HeldOut:
    full = Pattern.all_full(len(chosen))
    uniform = Pattern.uniform(len(chosen), chosen.kept)
    return HeldOut(*measure([full, chosen, uniform], group=HELD_OUT))
