"""Lazy greedy: re-measure only the candidates that could still be the best, and race those."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from ..pattern import Pattern
from .evaluation import Evaluation
from .greedy import Step, best_step, candidates, no_finite_loss
from .measurements import Measurements
from .race import STANDARD_ERRORS, race


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

    What removing a site costs depends above all on the full sites next to it: the one before it would
    serve it, the one after it ends its run. So an increase measured at an earlier step stands for the
    present one (Minoux's accelerated greedy) until a full site beside it is removed. At each step the
    candidate with the lowest increase is measured, those whose neighbour has just gone are raced against
    it (see ``race``), and others follow while they seemed cheaper than the best, on the windows they were
    seen on. Each removal is measured on all windows before it is committed.

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
    """``seen`` holds by how much removing a site raised the loss of each of the first windows."""

    measurements: Measurements
    pinned: frozenset[int]
    expected: dict[int, float]
    noise_floor: float
    standard_errors: float
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def step(self, current: Evaluation) -> Step:
        """The next removal from ``current``."""
        everyone = candidates(current.pattern, self.pinned)
        waiting = {site for site in everyone if site in self.seen or site in self.expected}
        finished: dict[int, Evaluation] = {}
        if waiting:
            first = min(waiting, key=lambda site: (self._lead_over(site, None, current), site))
            finished |= self._race([first], current, None)
            waiting.discard(first)
        if unknown := [site for site in everyone if site not in self.seen and site not in self.expected]:
            finished |= self._race(unknown, current, _lowest(finished))
        while waiting:
            leader = _lowest(finished)
            bounds = {site: self._lead_over(site, leader, current) for site in waiting}
            site = min(bounds, key=lambda each: (bounds[each], each))
            if leader is not None and bounds[site] >= 0:
                break
            finished |= self._race([site], current, leader)
            waiting.discard(site)
        if not finished:
            raise no_finite_loss(everyone)
        step = best_step(list(finished), list(finished.values()), self.noise_floor)
        self._forget_beside(step.removed, current.pattern)
        return step

    def _forget_beside(self, removed: int, pattern: Pattern) -> None:
        full = pattern.full
        place = full.index(removed)
        for neighbour in full[place - 1 : place + 2]:
            self.seen.pop(neighbour, None)

    def _race(self, sites: list[int], current: Evaluation, leader: Evaluation | None) -> dict[int, Evaluation]:
        """Races ``sites``; returns those that saw all windows with a finite loss."""
        patterns = [current.pattern.share(site) for site in sites]
        results = race(self.measurements, patterns, leader, self.standard_errors)
        self.seen |= {
            site: _increases(result, current) for site, result in zip(sites, results, strict=True) if result.finite
        }
        return {
            site: result
            for site, result in zip(sites, results, strict=True)
            if result.finite and len(result.window_losses) == self.measurements.windows
        }

    def _lead_over(self, site: int, leader: Evaluation | None, current: Evaluation) -> float:
        """How much dearer than the leader ``site`` was when last seen, on the windows it was seen on.

        Without a leader, how dear it was.
        """
        if site not in self.seen:
            return self.expected[site] - (leader.loss - current.loss if leader else 0.0)
        known = self.seen[site]
        return fmean(known) - (fmean(_increases(leader, current)[: len(known)]) if leader else 0.0)


def _lowest(evaluations: Mapping[int, Evaluation]) -> Evaluation | None:
    return min(evaluations.values(), key=lambda each: each.loss, default=None)


def _increases(evaluation: Evaluation, current: Evaluation) -> tuple[float, ...]:
    pairs = zip(evaluation.window_losses, current.window_losses, strict=False)
    return tuple(after - before for after, before in pairs)
