"""Lazy greedy: re-measure only the candidates that could still be the best, and race those."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...pattern import Pattern
from ..intervals import CONFIDENCE, Margin, margin
from ..losses import Evaluation, Measurements, cost_increases, mean_difference
from .greedy import Step, best_step, candidates, no_finite_loss, undecided_sites
from .race import FIRST_WINDOWS, STANDARD_ERRORS, race

# A candidate not measured on all windows at this step has to seem cheaper by so many standard errors.
_SEEMS_CHEAPER = 0.5
_GLANCE = 0.25  # share of the windows for a site whose increase was forgotten


def fast_greedy(
    measurements: Measurements,
    sites: int,
    kept: int,
    noise_floor: float = 0.0,
    pinned: Collection[int] = (),
    confidence: float = CONFIDENCE,
    order: Sequence[int] = (),
    standard_errors: float = STANDARD_ERRORS,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Greedy removal that measures a few candidates a step instead of all.

    What removing a site costs hardly moves while the sites beside it stay as they are, and mostly rises
    when the next full site after it goes, since it then serves more layers. So an increase measured at
    an earlier step stands for the present one (as in Minoux's accelerated greedy), but for the next full
    site after a removed one: the removed one's selection would have replaced that site's, and now an
    earlier one's would, so its increase moves either way, often by much, and is forgotten.

    The first step races all candidates (see ``race``). At each later one the candidate with the lowest
    increase is measured on all windows, the one whose increase was forgotten on a quarter of them, and
    others race against the best while they seem cheaper than it, by more than half a standard error on
    the windows they were seen on. Each removal is measured on all windows before it is committed.

    Args:
        measurements: of the calibration windows.
        sites: how many sites the model has.
        kept: full sites at the end, at least 1.
        noise_floor: costs that differ by no more than this count as tied.
        pinned: sites that stay full.
        confidence: with which a step has to be told from its rivals to count as decided.
        order: sites in the order in which an earlier search removed them, or in which layer costs would. Each
            step then measures the next of them first, and the first step has only a glance, at four windows, at
            the others.
        standard_errors: of the race.
        on_step: told of each committed step.

    Raises:
        MeasurementError: no candidate of a step has a finite loss.
    """
    search = _LazySearch(measurements, frozenset(pinned), tuple(order), noise_floor, confidence, standard_errors)
    current = measurements([Pattern.all_full(sites)])[0]
    steps: list[Step] = []
    while current.pattern.kept > kept and candidates(current.pattern, pinned):
        step = search.step(current)
        on_step(step)
        steps.append(step)
        current = step.evaluation
    return steps


def look_again(
    measurements: Measurements, step: Step, stays: Collection[int], noise_floor: float, confidence: float
) -> Step:
    """``step`` with those sites of ``stays`` measured further that it was not told from on the windows they saw.

    What a lazy search saw of a site on a few windows often leaves open what more windows tell. So the open sites
    are measured at this step, on twice as many windows each time, until they are told apart or have seen all.

    Args:
        measurements: of the calibration windows.
        step: of a search on them.
        stays: sites that stay full at the end.
        noise_floor: costs that differ by no more than this are not told apart.
        confidence: with which they have to be.
    """
    before = Pattern.from_full(len(step.pattern), {*step.pattern.full, step.removed})
    margins = dict(step.margins)

    def seen(site: int) -> int:
        return margins[site].windows or measurements.windows

    while rivals := [
        site
        for site in undecided_sites(margins, noise_floor)
        if site in stays and seen(site) < measurements.windows
    ]:
        count = min(2 * min(map(seen, rivals)), measurements.windows)
        field = [site for site in rivals if seen(site) < count]
        results = measurements([before.share(site) for site in field], count)
        for site, rival in zip(field, results, strict=True):
            if rival.finite:
                lowest = step.evaluation.window_costs[:count]
                margins[site] = margin(lowest, rival.window_costs, rival.documents, confidence)
            else:
                del margins[site]
    return replace(step, margins=margins, undecided=undecided_sites(margins, noise_floor))


@dataclass
class _LazySearch:
    """One lazy search in progress.

    ``seen`` holds for each site by how much its removal raised the loss of each of the first windows.
    """

    measurements: Measurements
    pinned: frozenset[int]
    order: tuple[int, ...]
    noise_floor: float
    confidence: float
    standard_errors: float
    seen: dict[int, list[float]] = field(default_factory=dict)

    def step(self, current: Evaluation) -> Step:
        """The next removal from ``current``."""
        sites = candidates(current.pattern, self.pinned)
        waiting = {site for site in sites if site in self.seen}
        finished: dict[int, Evaluation] = {}
        first = self._first(sites)
        if first is not None:
            finished |= self._race([first], current, None)
            waiting.discard(first)
        unknown = [site for site in sites if site not in self.seen]
        if finished:
            waiting |= self._glance(unknown, current)
        else:
            finished |= self._race(unknown, current, None)
        if not finished:
            # The candidates that the others left the race for came to no number: the others are looked at again.
            waiting |= {site for site in unknown if site in self.seen}
        while waiting:
            leader = _lowest(finished)
            behind = {site: self._behind(site, leader, current) for site in waiting}
            site = min(behind, key=lambda site: (behind[site], site))
            if leader is not None and behind[site] >= 0:
                break
            finished |= self._race([site], current, leader)
            waiting.discard(site)
        if not finished:
            raise no_finite_loss(sites)
        step = best_step(list(finished), list(finished.values()), self.noise_floor, self.confidence)
        # A site that is in neither has no finite loss.
        unfinished = [site for site in sites if site not in finished and site in self.seen]
        margins = {**step.margins} | {site: self._last_seen(site, step, current) for site in unfinished}
        self._forget_next(step.removed, current.pattern)
        return replace(step, margins=margins, undecided=undecided_sites(margins, self.noise_floor))

    def _last_seen(self, site: int, step: Step, current: Evaluation) -> Margin:
        """How much dearer ``site``, not measured on all windows at this step, is by what was last seen of it."""
        increases = self.seen[site]
        lowest, documents = _increases(step.evaluation, current)[: len(increases)], current.documents
        return margin(lowest, increases, documents[: len(increases)], self.confidence)

    def _first(self, sites: Sequence[int]) -> int | None:
        """The next site of the older search's order, or the one that seemed cheapest; None at a cold start."""
        cheapest = min(
            (site for site in sites if site in self.seen),
            key=lambda site: (mean_difference(self.seen[site]).delta, site),
            default=None,
        )
        return next((site for site in self.order if site in sites), cheapest)

    def _forget_next(self, removed: int, pattern: Pattern) -> None:
        """Forgets what was seen of ``removed`` and of the next full site, whose source changes with it."""
        full = pattern.full
        place = full.index(removed)
        for site in full[place : place + 2]:
            self.seen.pop(site, None)

    def _glance(self, sites: list[int], current: Evaluation) -> set[int]:
        """Measures ``sites`` on the first windows, few where an order is known; returns the finite ones."""
        share = 0.0 if self.order else _GLANCE
        count = max(FIRST_WINDOWS, math.ceil(share * self.measurements.windows))
        results = self.measurements([current.pattern.share(site) for site in sites], count)
        finite = {site: result for site, result in zip(sites, results, strict=True) if result.finite}
        self.seen |= {site: _increases(result, current) for site, result in finite.items()}
        return set(finite)

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
            if result.finite and len(result.windows) == self.measurements.windows
        }

    def _behind(self, site: int, leader: Evaluation | None, current: Evaluation) -> float:
        """How much dearer than the leader ``site`` seems, on the windows it was seen on.

        Doubt, half a standard error, counts for the leader: near-equal candidates would take turns
        otherwise, and the one that is not removed now is removed next. Without a leader, how dear it was.
        """
        increases = self.seen[site]
        if leader is None:
            return mean_difference(increases).delta
        leader_increases = _increases(leader, current)[: len(increases)]
        difference = mean_difference(
            [increase - lowest for increase, lowest in zip(increases, leader_increases, strict=True)],
            current.documents[: len(increases)],
        )
        return difference.delta + _SEEMS_CHEAPER * (difference.standard_error or 0.0)


def _lowest(evaluations: Mapping[int, Evaluation]) -> Evaluation | None:
    return min(evaluations.values(), key=lambda evaluation: evaluation.cost, default=None)


def _increases(evaluation: Evaluation, current: Evaluation) -> list[float]:
    """By how much the cost of each window rose from ``current``, on as many windows as were seen."""
    return cost_increases(evaluation, current.first(len(evaluation.windows)))
