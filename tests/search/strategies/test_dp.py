"""Dynamic programming against every pattern, tried one by one, on random costs."""

import itertools
import random

import pytest

from indexcache.pattern import Pattern
from indexcache.search.strategies.dp import dp_patterns, mean_costs, removal_order


def random_costs(seed, sites, levels=None):
    """Random costs of all pairs; with ``levels``, whole numbers below it, so that many sums are equal."""
    draw = random.Random(seed)
    value = draw.random if levels is None else lambda: float(draw.randrange(levels))
    # What is not above the diagonal must not be read.
    return [[value() if i < j else float("nan") for j in range(sites)] for i in range(sites)]


def every_pattern(sites, kept, pinned=()):
    fixed = {0, *pinned}
    others = [site for site in range(sites) if site not in fixed]
    return [
        Pattern.from_full(sites, fixed.union(rest)) for rest in itertools.combinations(others, kept - len(fixed))
    ]


def by_hand(costs, pattern):
    total, source = 0.0, 0
    for site, role in enumerate(str(pattern)):
        source = site if role == "F" else source
        total += costs[source][site] if role == "S" else 0.0
    return total


@pytest.mark.parametrize("sites", range(1, 11))
@pytest.mark.parametrize("pinned", [(), (3,), (2, 4)])
def test_no_pattern_is_cheaper(sites, pinned):
    pinned = tuple(site for site in pinned if site < sites)
    for seed in range(3):
        costs = random_costs(seed, sites)
        patterns = dp_patterns(costs, pinned)
        assert list(patterns) == list(range(len({0, *pinned}), sites + 1)), "a budget is missing"
        for kept, pattern in patterns.items():
            assert pattern.kept == kept
            assert {0, *pinned} <= set(pattern.full)
            lowest = min(by_hand(costs, other) for other in every_pattern(sites, kept, pinned))
            assert by_hand(costs, pattern) == pytest.approx(lowest), f"{pattern} is not the cheapest"


@pytest.mark.parametrize("seed", range(8))
def test_of_equal_sums_the_one_with_the_earliest_last_full_site_is_taken(seed):
    sites = 8
    costs = random_costs(seed, sites, levels=2)
    for kept, pattern in dp_patterns(costs).items():
        sums = {other: by_hand(costs, other) for other in every_pattern(sites, kept)}
        ties = [other for other, total in sums.items() if total == min(sums.values())]
        assert pattern == min(ties, key=lambda other: other.full[::-1])


def test_the_largest_model_gives_a_pattern_for_every_budget():
    # That all are the cheapest is shown above; here that nothing grows out of hand at GLM-5's 78 sites.
    costs = random_costs(0, 78)
    patterns = dp_patterns(costs)
    assert len(patterns) == 78
    sums = [by_hand(costs, patterns[kept]) for kept in range(1, 79)]
    assert sums == sorted(sums, reverse=True), "one more full site made the cheapest pattern dearer"
    assert sums[-1] == 0


@pytest.mark.parametrize("pinned", [(), (2, 5)])
def test_each_removal_is_the_one_that_adds_least(pinned):
    for seed in range(10):
        costs = random_costs(seed, 9, levels=None if seed % 2 else 3)
        order, pattern = removal_order(costs, pinned), Pattern.all_full(9)
        assert sorted(order) == [site for site in range(1, 9) if site not in pinned]
        for removed in order:
            field = [site for site in pattern.full[1:] if site not in pinned]
            lowest = min(field, key=lambda site: (round(by_hand(costs, pattern.share(site)), 9), site))
            assert removed == lowest
            pattern = pattern.share(removed)


def test_mean_costs_are_of_all_windows():
    first, second = random_costs(0, 5), random_costs(1, 5)
    mean = mean_costs([first, second])
    for i, j in itertools.combinations(range(5), 2):
        assert mean[i][j] == pytest.approx((first[i][j] + second[i][j]) / 2)
