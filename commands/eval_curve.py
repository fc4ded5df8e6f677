"""A plan's whole curve on held-out windows, and its loss by position in the window, as eval measures them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..calibrate.windows import WindowGroup, Windows
from ..errors import MeasurementError
from ..evaluate import HELD_OUT, Request
from ..pattern import Pattern
from ..search.losses import Evaluation
from ..search.objective import scored
from ..search.plan.cut import measured_patterns
from ..search.plan.record import heldout_record, measured_pattern
from ..search.plan.schema import MeasuredPattern, Plan
from ..search.report.checks import CurveLosses, PositionLosses
from ..search.search import Problem, compare

# The informative positions are told apart in so many parts of equal length.
_PARTS = 4


@dataclass(frozen=True)
class Stretch:
    """Labels of a window, from ``first`` to ``last``, which are measured apart as a group of their own."""

    first: int
    last: int

    @property
    def group(self) -> str:
        """The name of its group."""
        return f"{HELD_OUT} {self.first}-{self.last}"


def stretches(plan: Plan) -> list[Stretch]:
    """Where patterns can differ in parts: behind the positions that see no more keys than are selected."""
    labels, blind = plan.tokens.labels, min(plan.model.selection_width, plan.tokens.labels)
    parts = min(_PARTS, labels - blind)
    edges = [blind + (labels - blind) * part // parts for part in range(parts + 1)] if parts else []
    return [Stretch(first, end - 1) for first, end in itertools.pairwise(edges)]


def with_stretches(windows: Windows, plan: Plan) -> Windows:
    """The windows, and the held-out ones once more for each stretch, of which alone its labels count."""
    heldout = windows.groups[HELD_OUT]
    groups = {}
    for stretch in stretches(plan):
        answers = np.zeros((len(heldout.ids), plan.tokens.labels), np.bool_)
        answers[:, stretch.first : stretch.last + 1] = True
        groups[stretch.group] = WindowGroup(heldout.ids, heldout.documents, answers)
    return windows.with_groups(groups)


def curve_evaluations(plan: Plan, windows: int) -> int:
    """How many window evaluations the curve and the stretches take."""
    return windows * (len(_patterns(plan)) + 3 * len(stretches(plan)))


def measured_curve(problem: Problem, plan: Plan, confidence: float) -> tuple[CurveLosses, list[PositionLosses]]:
    """Every budget of ``plan`` on the held-out windows, uniform beside it, and the plan's own by position.

    Raises:
        MeasurementError: a loss is NaN or infinite.
    """
    patterns, documents = _patterns(plan), tuple(problem.documents[HELD_OUT])
    losses = problem.measure([Request(patterns, range(len(documents)), HELD_OUT)])[0]
    measured = {
        pattern: Evaluation(pattern, tuple(scored("expected-loss", loss) for loss in window_losses), documents)
        for pattern, window_losses in zip(patterns, losses, strict=True)
    }
    baseline = measured[problem.full]
    if not all(evaluation.finite for evaluation in measured.values()):
        raise MeasurementError("a loss on the held-out windows is NaN or infinite")

    def line(of_line: Sequence[Pattern]) -> list[MeasuredPattern]:
        return [measured_pattern(measured[pattern], baseline, confidence) for pattern in of_line]

    curve = CurveLosses(
        baseline_loss=baseline.loss,
        searched=line(_searched(plan)),
        uniform=line(_uniform(plan)),
        dp=line(_by_dp(plan)),
    )
    return curve, [_position(problem, plan, stretch, confidence) for stretch in stretches(plan)]


def _position(problem: Problem, plan: Plan, stretch: Stretch, confidence: float) -> PositionLosses:
    record = heldout_record(compare(problem, stretch.group, plan.pattern), confidence)
    if record is None:
        raise MeasurementError("a loss on the held-out windows is NaN or infinite")
    # Label t is token t + 1: what the query at position t predicts.
    return PositionLosses(first=stretch.first, last=stretch.last, losses=record)


def _patterns(plan: Plan) -> list[Pattern]:
    """All patterns of the curve, all full first."""
    return list(dict.fromkeys((Pattern(plan.all_full.pattern), *_searched(plan), *_uniform(plan), *_by_dp(plan))))


def _searched(plan: Plan) -> list[Pattern]:
    """The plan's pattern for every number of full sites; its own alone where its indexers fit no other."""
    by_budget = {plan.result.kept: plan.result} if plan.distilled else measured_patterns(plan)
    sites = plan.result.sites
    return [Pattern(by_budget[kept].pattern) for kept in sorted(by_budget, reverse=True) if kept < sites]


def _uniform(plan: Plan) -> list[Pattern]:
    return [Pattern.uniform(plan.result.sites, pattern.kept, plan.pinned_sites) for pattern in _searched(plan)]


def _by_dp(plan: Plan) -> list[Pattern]:
    """The patterns of dynamic programming; none where they are the plan's own or its indexers fit one pattern."""
    is_own = plan.distilled is not None or plan.search.strategy == "dp"
    return [] if is_own else [Pattern(measured.pattern) for measured in plan.search.dp]
