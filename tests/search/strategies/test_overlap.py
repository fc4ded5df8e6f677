"""Overlap patterns against the best of all patterns, tried one by one."""

import itertools
import random

import pytest

from indexcache.pattern import Pattern
from indexcache.search.strategies.overlap import overlap_patterns


def gain(overlap, pattern):
    return sum(overlap[source][site] for site, source in enumerate(pattern.sources()))


@pytest.mark.parametrize("seed", range(20))
def test_dynamic_programming_finds_the_best_of_all_patterns(seed):
    draw, sites, kept = random.Random(seed), 7, 1 + seed % 6
    overlap = [[1.0 if a == b else draw.random() for b in range(sites)] for a in range(sites)]
    patterns = [Pattern.from_full(sites, (0, *rest)) for rest in itertools.combinations(range(1, sites), kept - 1)]
    chosen = overlap_patterns(overlap)[kept]
    assert chosen.kept == kept
    assert gain(overlap, chosen) == pytest.approx(max(gain(overlap, pattern) for pattern in patterns))


@pytest.mark.parametrize("seed", range(10))
def test_around_pinned_sites_it_finds_the_best_of_what_is_left(seed):
    draw, sites, kept, fixed = random.Random(seed), 8, 4, {0, 3, 5}
    overlap = [[draw.random() for _ in range(sites)] for _ in range(sites)]
    allowed = [Pattern.from_full(sites, {*fixed, site}) for site in (1, 2, 4, 6, 7)]
    chosen = overlap_patterns(overlap, (5, 3))[kept]
    assert chosen in allowed
    assert gain(overlap, chosen) == pytest.approx(max(gain(overlap, pattern) for pattern in allowed))
