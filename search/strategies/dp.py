"""Dynamic programming over layer costs: without a search, the cheapest pattern for every number of full sites."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ...pattern import Pattern

Costs = Sequence[Sequence[float]]
"""``costs[source][site]``: what ``site`` suffers under the selection of ``source``, an earlier site."""


def dp_patterns(costs: Costs, pinned: Collection[int] = ()) -> dict[int, Pattern]:
    """The pattern with the lowest sum of costs, for every number of full sites that can be.

    A pattern splits the sites into runs: a full site and the shared ones that it serves. With ``run(f, e)``
    the sum of ``costs[f][j]`` over ``f < j < e``, the cheapest way to end a run before site ``e`` with ``k``
    full sites so far is

        best(k, e) = min over f < e of best(k - 1, f) + run(f, e),    best(0, 0) = 0.

    That is exact for costs that add up; the patterns of two budgets need not be nested. It takes about
    ``sites^3 / 6`` additions. Of equal sums the one whose last full site is earliest is taken, and so on
    backwards; a sum that is infinite gives no pattern.

    Args:
        costs: of all pairs of sites; what is not above the diagonal is not read.
        pinned: sites that have to be full.

    Returns:
        Patterns by their number of full sites.
    """
    sites, runs = len(costs), _runs(costs)
    # A run that ends before ``end`` begins no earlier than the last pinned site before it.
    earliest = [max((site for site in {0, *pinned} if site < end), default=0) for end in range(sites + 1)]
    best = [0.0, *[math.inf] * sites]
    last_full: list[list[int]] = []
    patterns: dict[int, Pattern] = {}
    for kept in range(1, sites + 1):
        reached, lasts = [math.inf] * (sites + 1), [0] * (sites + 1)
        for end in range(kept, sites + 1):
            firsts = range(max(earliest[end], kept - 1), end)
            reached[end], lasts[end] = min((best[first] + runs[end][first], first) for first in firsts)
        best = reached
        last_full.append(lasts)
        if best[sites] < math.inf:
            patterns[kept] = Pattern.from_full(sites, _traced(last_full, sites))
    return patterns


def removal_order(costs: Costs, pinned: Collection[int] = ()) -> list[int]:
    """Sites in the order in which greedy removal under the same sums turns them shared.

    The patterns of ``dp_patterns`` are not nested, so they are no order. Each step removes the site whose
    removal raises that sum least; of equal ones the earlier.

    Args:
        costs: of all pairs of sites.
        pinned: sites that stay full, like the first.
    """
    sites, runs = len(costs), _runs(costs)
    full, order = list(range(sites)), list[int]()

    def increase(place: int) -> float:
        before, site = full[place - 1], full[place]
        end = full[place + 1] if place + 1 < len(full) else sites
        return runs[end][before] - runs[site][before] - runs[end][site]

    while places := [place for place, site in enumerate(full) if site != 0 and site not in pinned]:
        order.append(full.pop(min(places, key=lambda place: (increase(place), full[place]))))
    return order


def mean_costs(window_costs: Sequence[Costs]) -> list[list[float]]:
    """The mean of the windows' costs, ``[sites][sites]``, of one matrix a window."""
    count, sites = len(window_costs), range(len(window_costs[0]))
    # Below the diagonal, where no selection is handed backwards, nothing is read.
    return [
        [math.fsum(matrix[i][j] for matrix in window_costs) / count if i < j else 0.0 for j in sites]
        for i in sites
    ]


def _runs(costs: Costs) -> list[list[float]]:
    """``[end][first]``: what the sites between ``first`` and ``end`` suffer together if ``first`` serves them."""
    sites = len(costs)
    runs = [[0.0] * sites for _ in range(sites + 1)]
    for first in range(sites):
        for end in range(first + 2, sites + 1):
            runs[end][first] = runs[end - 1][first] + costs[first][end - 1]
    return runs


def _traced(last_full: Sequence[Sequence[int]], sites: int) -> list[int]:
    """The full sites of the cheapest pattern, from which run was the last for each number of runs."""
    full, end = list[int](), sites
    for lasts in reversed(last_full):
        end = lasts[end]
        full.append(end)
    return full
