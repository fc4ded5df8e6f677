"""Lazy greedy: re-measure only the candidates that could still be the best, and race those."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from ...pattern import Pattern
from ..intervals import CONFIDENCE, Margin, margin
from ..losses import Evaluation, Look, Measurements, cost_increases, mean_difference
from .greedy import Step, best_step, candidates, no_finite_loss, undecided_sites
from .race import FIRST_WINDOWS, STANDARD_ERRORS, race

# A candidate not measured on all windows at this step has to seem cheaper by so many standard errors.
_SEEMS_CHEAPER = 0.5
_GLANCE = 0.25  # share of the windows for a site whose increase was forgotten
_SECOND_GLANCE = 0.1875  # and for one whose increase has mostly risen
# So many standard errors apart, on few windows, are two candidates hardly told from each other.
_CLOSE = 0.1


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

    The first step races all candidates (see ``race``). At each later one a first sweep measures the candidate with
    the lowest increase on all windows, the second too where few windows put it there by next to nothing; on a
    part of the windows the one whose increase was forgotten, and the second where it has mostly risen since it was
    seen. While others seem cheaper than the best, by more than half a standard error on the windows they were seen
    on, they are measured on all windows: one in the second sweep, two in the third, four in the next, as the
    cheapest mostly settles it for the others. Each removal is measured on all windows before it is committed.

    Args:
        measurements: of the calibration windows.
        sites: how many sites the model has.
        kept: full sites at the end, at least 1.
        noise_floor: costs that differ by no more than this count as tied.
        pinned: sites that stay full.
        confidence: with which a step has to be told from its rivals to count as decided.
        order: sites in the order in which an earlier search removed them, or in which layer costs would. Each
            step then measures the next of them first, unless it seems dearer than another, and the first step has
            only a glance, at four windows, at the others.
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

    ``seen`` holds for each site by how much its removal raised the loss of each of the first windows, ``grown``
    the sites that serve more layers than they did then.
    """

    measurements: Measurements
    pinned: frozenset[int]
    order: tuple[int, ...]
    noise_floor: float
    confidence: float
    standard_errors: float
    seen: dict[int, list[float]] = field(default_factory=dict)
    grown: set[int] = field(default_factory=set)

    def step(self, current: Evaluation) -> Step:
        """The next removal from ``current``."""
        sites = candidates(current.pattern, self.pinned)
        finished, most = self._first_look(sites, current), 1
        waiting = {site for site in sites if site in self.seen and site not in finished}
        while rivals := self._rivals(waiting, finished, current, most):
            finished |= self._look([([site], None) for site in reversed(rivals)], current)
            waiting -= set(rivals)
            most *= 2
        if not finished:
            raise no_finite_loss(sites)
        step = best_step(list(finished), list(finished.values()), self.noise_floor, self.confidence)
        # A site that is in neither has no finite loss.
        unfinished = [site for site in sites if site not in finished and site in self.seen]
        margins = {**step.margins} | {site: self._last_seen(site, step, current) for site in unfinished}
        self._forget_next(step.removed, current.pattern)
        return replace(step, margins=margins, undecided=undecided_sites(margins, self.noise_floor))

    def _first_look(self, sites: Sequence[int], current: Evaluation) -> dict[int, Evaluation]:
        """The first sweep of a step, or the race of all at a cold start; returns those that saw all windows.

        The likely winner is looked at on all windows and so is one that may well be cheaper; those whose increase
        is not known have a glance at the first windows, few where an order is known.
        """
        first = self._first(sites, current)
        unknown = [site for site in sites if site not in self.seen and site != first]
        if first is None:
            return self._race(unknown, current)
        share = 0.0 if self.order else _GLANCE
        alone = [*self._close_second(sites, first, current), first]
        looks = [(unknown, self._windows(share)), (self._grown_rival(sites, alone), self._windows(_SECOND_GLANCE))]
        return self._look([*looks, *(([site], None) for site in alone)], current)

    def _windows(self, share: float) -> int:
        return max(FIRST_WINDOWS, math.ceil(share * self.measurements.windows))

    def _grown_rival(self, sites: Sequence[int], alone: Collection[int]) -> list[int]:
        """The cheapest of ``sites`` but ``alone``, if it serves more layers than when it was seen; or none.

        It is mostly dearer by now, and would have to be looked at if the first turned out dearer too.
        """
        site = self._cheapest([site for site in sites if site not in alone])
        return [site] if site in self.grown else []

    def _close_second(self, sites: Sequence[int], first: int, current: Evaluation) -> list[int]:
        """The second cheapest where the windows that ``first`` was seen on hardly tell the two apart, or none.

        Whatever is the cheapest of many on a few windows is likely to be dearer on all.
        """
        second = self._cheapest([site for site in sites if site != first])
        few = first in self.seen and len(self.seen[first]) < self.measurements.windows
        if self.order or second is None or not few:
            return []
        return [] if self._seems_dearer(second, first, current, _CLOSE) else [second]

    def _seems_dearer(self, site: int, other: int, current: Evaluation, standard_errors: float) -> bool:
        """Whether ``site`` is dearer by so much on the windows that both were seen on."""
        pairs = list(zip(self.seen[site], self.seen[other], strict=False))
        apart = mean_difference([one - two for one, two in pairs], current.documents[: len(pairs)])
        return apart.delta > standard_errors * (apart.standard_error or 0.0)

    def _last_seen(self, site: int, step: Step, current: Evaluation) -> Margin:
        """How much dearer ``site``, not measured on all windows at this step, is by what was last seen of it."""
        increases = self.seen[site]
        lowest, documents = _increases(step.evaluation, current)[: len(increases)], current.documents
        return margin(lowest, increases, documents[: len(increases)], self.confidence)

    def _first(self, sites: Sequence[int], current: Evaluation) -> int | None:
        """The likely winner; None at a cold start.

        That is the next site of the older search's order unless it seems dearer than the cheapest, or that one.
        """
        cheapest = self._cheapest(sites)
        listed = next((site for site in self.order if site in sites), cheapest)
        if listed is None or cheapest is None or listed not in self.seen:
            return listed
        return cheapest if self._seems_dearer(listed, cheapest, current, _SEEMS_CHEAPER) else listed

    def _cheapest(self, sites: Sequence[int]) -> int | None:
        """The one of ``sites`` that seemed cheapest, of those that were seen."""
        return min(
            (site for site in sites if site in self.seen),
            key=lambda site: (mean_difference(self.seen[site]).delta, site),
            default=None,
        )

    def _forget_next(self, removed: int, pattern: Pattern) -> None:
        """Forgets what was seen of ``removed`` and of the next full site, whose source changes with it.

        The full site before it serves more layers from now on.
        """
        full = pattern.full
        place = full.index(removed)
        self.grown.add(full[place - 1])
        for site in full[place : place + 2]:
            self.seen.pop(site, None)

    def _look(
        self, looks: Sequence[tuple[Sequence[int], int | None]], current: Evaluation
    ) -> dict[int, Evaluation]:
        """Looks at sites on the first windows, all of them for None, in one sweep; returns as ``_race`` does."""
        shared = [Look([current.pattern.share(site) for site in sites], count) for sites, count in looks]
        results = self.measurements.together(shared)
        seen = zip((site for sites, _ in looks for site in sites), chain.from_iterable(results), strict=True)
        return self._note(dict(seen), current)

    def _race(self, sites: Sequence[int], current: Evaluation) -> dict[int, Evaluation]:
        """Races ``sites``; returns those that saw all windows with a finite loss."""
        patterns = [current.pattern.share(site) for site in sites]
        results = race(self.measurements, patterns, None, self.standard_errors)
        return self._note(dict(zip(sites, results, strict=True)), current)

    def _note(self, results: Mapping[int, Evaluation], current: Evaluation) -> dict[int, Evaluation]:
        """Keeps the increases of ``results``, of finite ones alone; returns those that saw all windows.

        What was seen before on further windows is taken to have risen as much as on these.
        """
        for site, result in results.items():
            before = self.seen.pop(site, [])
            self.grown.discard(site)
            if result.finite:
                now = _increases(result, current)
                rise = mean_difference([new - old for new, old in zip(now, before, strict=False)] or [0.0]).delta
                self.seen[site] = now + [old + rise for old in before[len(now) :]]
        whole = self.measurements.windows
        return {site: result for site, result in results.items() if result.finite and len(result.windows) == whole}

    def _rivals(
        self, waiting: Collection[int], finished: Mapping[int, Evaluation], current: Evaluation, most: int
    ) -> list[int]:
        """Those of ``waiting`` that seem cheaper than the cheapest of ``finished``, ``most`` at most, best first.

        All of them, where none of those that were measured has a finite loss.
        """
        leader = _lowest(finished)
        behind = {site: self._behind(site, leader, current) for site in waiting}
        ranked = sorted(waiting, key=lambda site: (behind[site], site))
        return [site for site in ranked if leader is None or behind[site] < 0][:most]

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
