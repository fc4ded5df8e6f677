"""Measures what distilled indexers change: segment by segment, which of them stay, and then all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import MeasurementError
from ...evaluate import CALIBRATION, HELD_OUT, Request
from ...pattern import FULL, SHARED, DistilledPattern, Pattern
from ..losses import Evaluation
from ..objective import scored
from ..search import Problem


@dataclass(frozen=True)
class SegmentTrial:
    """A full site alone sharing its selection, on held-out windows: KL(all full || pattern), nats per label.

    Args:
        site: the full site.
        end: the first site that it does not serve.
        before: with the indexer that it had.
        after: with the distilled one.
    """

    site: int
    end: int
    before: float
    after: float

    @property
    def fell(self) -> bool:
        """Whether the distilled indexer is the better one; else the old one stays."""
        return self.after < self.before


@dataclass(frozen=True)
class DistilledPair:
    """All full, and a pattern before and after, on the same windows."""

    full: Evaluation
    before: Evaluation
    after: Evaluation


@dataclass(frozen=True)
class DistilledFindings:
    """What was measured of distilled indexers.

    Args:
        trials: of the segments that were trained.
        heldout: with the distilled indexers that stay.
        calibration: likewise, in sample.
        uniform: as many full sites spread evenly, held out, with the indexers as they were.
    """

    trials: tuple[SegmentTrial, ...]
    heldout: DistilledPair
    calibration: DistilledPair
    uniform: Evaluation

    @property
    def written(self) -> frozenset[int]:
        """The sites whose distilled indexers stay."""
        return frozenset(trial.site for trial in self.trials if trial.fell)


def alone(sites: int, site: int, end: int) -> Pattern:
    """The pattern in which only ``site`` shares its selection, with the sites before ``end``."""
    return Pattern(FULL * (site + 1) + SHARED * (end - site - 1) + FULL * (sites - end))


def measure_segments(problem: Problem, segments: Sequence[tuple[int, int]]) -> tuple[SegmentTrial, ...]:
    """Each of ``segments`` alone, with the old indexer and the distilled one, in one sweep over held-out windows.

    Raises:
        MeasurementError: a divergence is no number.
    """
    before = [alone(problem.sites, site, end) for site, end in segments]
    after = [
        DistilledPattern(pattern.roles, frozenset({site}))
        for pattern, (site, _) in zip(before, segments, strict=True)
    ]
    measured = _evaluations(problem, [*before, *after], HELD_OUT)
    return tuple(
        SegmentTrial(site, end, _divergence(old), _divergence(new))
        for (site, end), old, new in zip(segments, measured[: len(before)], measured[len(before) :], strict=True)
    )


def measure_distilled(
    problem: Problem, pattern: Pattern, trials: Sequence[SegmentTrial], windows: int
) -> DistilledFindings:
    """The whole pattern before and after, held out and on the first ``windows`` calibration windows, in one sweep.

    Raises:
        MeasurementError: a loss is no number.
    """
    sites = frozenset(trial.site for trial in trials if trial.fell)
    patterns = [problem.full, pattern, DistilledPattern(pattern.roles, sites)]
    uniform = Pattern.uniform(problem.sites, pattern.kept, problem.method.pinned)
    heldout = _request(problem, [*patterns, uniform], HELD_OUT)
    calibration = _request(problem, patterns, CALIBRATION)._replace(windows=range(windows))
    of_heldout, of_calibration = _measured(problem, [heldout, calibration])
    return DistilledFindings(
        tuple(trials), DistilledPair(*of_heldout[:3]), DistilledPair(*of_calibration), of_heldout[3]
    )


def _request(problem: Problem, patterns: Sequence[Pattern], group: str) -> Request:
    return Request(patterns, range(len(problem.documents[group])), group)


def _evaluations(problem: Problem, patterns: Sequence[Pattern], group: str) -> list[Evaluation]:
    return _measured(problem, [_request(problem, patterns, group)])[0]


def _measured(problem: Problem, requests: Sequence[Request]) -> list[list[Evaluation]]:
    """Evaluations of all requests, from one sweep.

    Raises:
        MeasurementError: a loss is NaN or infinite.
    """
    evaluations = [
        [
            Evaluation(
                pattern,
                tuple(scored("expected-loss", loss) for loss in losses),
                tuple(problem.documents[request.group][window] for window in request.windows),
            )
            for pattern, losses in zip(request.patterns, measured, strict=True)
        ]
        for request, measured in zip(requests, problem.measure(requests), strict=True)
    ]
    if not all(evaluation.finite for of_request in evaluations for evaluation in of_request):
        raise MeasurementError("a loss with the distilled indexers, or with those before, is NaN or infinite")
    return evaluations


def _divergence(evaluation: Evaluation) -> float:
    return evaluation.mean("divergence") or 0.0
