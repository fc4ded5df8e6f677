"""Lazy greedy: re-measure only the candidates that could still be the best, and race those."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from ..pattern import Pattern
from .evaluation import Evaluation
from .greedy import Step, best_step, candidates, no_finite_loss
from .measurements import Measurements
from .race import FIRST_WINDOWS, STANDARD_ERRORS, race

# An increase measured when there were this many times as many full sites is no longer believed.
_STALE = 1.25


@dataclass(frozen=True)
class _Seen:
    """What removing a site cost when it was last measured.

    Args:
        increases: by how much it raised the loss of each of the first windows, nats per label.
        kept: full sites there were before it.
    """

    increases: tuple[float, ...]
    kept: int


def fast_greedy(
    measurements: Measurements,
    sites: int,
    kept: int,
    noise_floor: float = 0.0,
    pinned: Collection[int] = (),
    priorities: Mapping[int, float] | None = None,
    standard_errors: float = STANDARD_ERRORS,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Greedy removal that measures a few candidates a step instead of all.

    What removing a site costs changes slowly as others are shared, and mostly upwards. So the increase
    measured at an earlier step stands for the present one: the candidate with the lowest is measured
    again, and is removed as soon as none of the others seemed cheaper on the windows they were seen on
    (Minoux's accelerated greedy). Candidates last measured when a quarter more sites were full are first
    seen again on a few windows, all together. Whatever is measured on more than those is raced (see
    ``race``), and each removal is measured on all windows before it is committed.

    Args:
        measurements: of the calibration windows.
        sites: how many sites the model has.
        kept: full sites at the end, at least 1.
        noise_floor: losses that differ by no more than this count as tied, nats per label.
        pinned: sites that stay full.
        priorities: expected increases from an earlier plan, instead of measuring every site at first.
        standard_errors: of the race.
        on_step: told of each committed step.

    Raises:
        MeasurementError: no candidate of a step has a finite loss.
    """
    search = _LazySearch(measurements, frozenset(pinned), dict(priorities or {}), noise_floor, standard_errors)
    current = measurements([Pattern.all_full(sites)])[0]
    steps: list[Step] = []
    while current.pattern.kept > kept and candidates(current.pattern, pinned):
        step = search.step(current)
        on_step(step)
        steps.append(step)
        current = step.evaluation
    return steps


@dataclass
class _LazySearch:
    measurements: Measurements
    pinned: frozenset[int]
    expected: dict[int, float]
    noise_floor: float
    standard_errors: float
    seen: dict[int, _Seen] = field(default_factory=dict)

    def step(self, current: Evaluation) -> Step:
        """The next removal from ``current``."""
        everyone = candidates(current.pattern, self.pinned)
        finished: dict[int, Evaluation] = {}
        waiting = set(everyone)
        unknown = [site for site in everyone if site not in self.seen and site not in self.expected]
        if unknown:
            finished |= self._race(unknown, current, None)
            waiting -= set(unknown)
        self._look_again(sorted(waiting), current)
        while waiting:
            leader = min(finished.values(), key=lambda each: each.loss, default=None)
            bounds = {site: self._lead_over(site, leader, current) for site in waiting}
            site = min(bounds, key=lambda each: (bounds[each], each))
            if leader is not None and bounds[site] >= 0:
                break
            finished |= self._race([site], current, leader)
            waiting.discard(site)
        if not finished:
            raise no_finite_loss(everyone)
        return best_step(list(finished), list(finished.values()), self.noise_floor)

    def _race(self, sites: list[int], current: Evaluation, leader: Evaluation | None) -> dict[int, Evaluation]:
        """Races ``sites``; returns those that saw all windows with a finite loss."""
        patterns = [current.pattern.share(site) for site in sites]
        results = race(self.measurements, patterns, leader, self.standard_errors)
        self._remember(sites, results, current)
        return {
            site: result
            for site, result in zip(sites, results, strict=True)
            if result.finite and len(result.window_losses) == self.measurements.windows
        }

    def _look_again(self, sites: list[int], current: Evaluation) -> None:
        kept = current.pattern.kept
        old = [site for site in sites if site in self.seen and self.seen[site].kept >= _STALE * kept]
        if old:
            patterns = [current.pattern.share(site) for site in old]
            self._remember(old, self.measurements(patterns, FIRST_WINDOWS), current)

    def _remember(self, sites: list[int], results: list[Evaluation], current: Evaluation) -> None:
        for site, result in zip(sites, results, strict=True):
            if result.finite:
                self.seen[site] = _Seen(_increases(result, current), current.pattern.kept)

    def _lead_over(self, site: int, leader: Evaluation | None, current: Evaluation) -> float:
        """How much dearer than the leader ``site`` was when last seen, on the windows it was seen on.

        Without a leader, how dear it was.
        """
        if site not in self.seen:
            return self.expected[site] - (leader.loss - current.loss if leader else 0.0)
        known = self.seen[site].increases
        return fmean(known) - (fmean(_increases(leader, current)[: len(known)]) if leader else 0.0)


def _increases(evaluation: Evaluation, current: Evaluation) -> tuple[float, ...]:
    pairs = zip(evaluation.window_losses, current.window_losses, strict=False)
    return tuple(after - before for after, before in pairs)
