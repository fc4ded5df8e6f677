"""The bootstrap over documents: what is drawn, and the chances that come of it."""

import math
import random
from statistics import fmean, pvariance

import pytest

from indexcache.search.resamples import document_resamples, kept_chances


def test_one_document_less_is_drawn_than_there_are():
    resamples = document_resamples((7, 7, 3, 5, 3), 5, count=50)
    assert len(resamples) == 50
    assert all(len(times) == 3 and sum(times) == 2 for times in resamples)


def test_draws_depend_on_the_seed_alone():
    assert document_resamples((), 4, 6, seed=1) == document_resamples((4, 3, 2, 1), 4, 6, seed=1)
    assert document_resamples((), 4, 6, seed=1) != document_resamples((), 4, 6, seed=2)
    # The same on every platform and version of Python.
    assert document_resamples((), 3, 4) == [(0, 1, 1), (0, 1, 1), (1, 0, 1), (0, 2, 0)]


def test_resampled_means_spread_as_the_mean_does():
    values = [0.3, 1.9, -0.4, 0.8]
    means = [
        sum(value * times for value, times in zip(values, drawn, strict=True)) / 3
        for drawn in document_resamples((), 4, 20000)
    ]
    error = pvariance(values) * 4 / 3 / 4
    # Drawing all four would give three quarters of it.
    assert pvariance(means) == pytest.approx(error, rel=0.03)
    assert fmean(means) == pytest.approx(fmean(values), abs=0.01)


def test_one_document_gives_no_chances():
    assert document_resamples((2, 2, 2), 3) == []
    assert kept_chances([{1: [0.1, 0.2], 2: [0.3, 0.1]}], (5, 5)) == {}
    assert kept_chances([]) == {}


def test_the_one_that_is_lowest_on_every_document_is_always_removed():
    assert kept_chances([{3: [0.2, 0.3], 1: [0.1, 0.2]}]) == {1: 0.0, 3: 1.0}
    # Of equal ones the first.
    assert kept_chances([{3: [0.2, 0.3], 1: [0.2, 0.3]}]) == {1: 0.0, 3: 1.0}


def test_chances_are_those_of_the_documents_drawn():
    # Site 1 is lower on the first document alone. Of three, two are drawn: it goes where the first is drawn twice,
    # 1 in 9, or once, 4 in 9, when its gain there of 3 outweighs the loss of 1.
    chances = kept_chances([{1: [0.0, 1.0, 1.0], 2: [3.0, 0.0, 0.0]}], count=8000)
    assert chances[1] == pytest.approx(4 / 9, abs=0.02)
    assert sum(chances.values()) == pytest.approx(1)


def test_windows_weigh_as_many_as_they_are():
    # The document of three windows outweighs the other wherever both are drawn; only one of two is.
    chances = kept_chances([{1: [0.0, 0.0, 0.0, 5.0], 2: [1.0, 1.0, 1.0, 0.0]}], (8, 8, 8, 9), count=4000)
    assert chances[1] == pytest.approx(0.5, abs=0.03)


def test_a_site_that_any_order_removes_is_never_kept():
    first = {1: [0.1, 0.3, 0.2], 2: [0.3, 0.1, 0.2], 3: [5.0, 5.0, 5.0]}
    second = {2: [0.3, 0.1, 0.2], 3: [5.0, 5.0, 5.0]}
    # Sites 1 and 2 take turns at being first; as last measured, the other one follows.
    assert kept_chances([first, second]) == {1: 0.0, 2: 0.0, 3: 1.0}
    alone = kept_chances([first], count=4000)
    assert alone[1] + alone[2] == pytest.approx(1)
    assert 0.2 < alone[1] < 0.6


def test_the_last_measurement_of_an_increase_counts():
    first = {1: [0.0, 0.0], 2: [1.0, 1.0], 3: [2.0, 2.0]}
    second = {2: [9.0, 9.0], 3: [3.0, 3.0]}
    assert kept_chances([first, second]) == {1: 0.0, 2: 1.0, 3: 0.0}
    # Where a step measured nothing anew, the earlier measurement stands.
    assert kept_chances([first, {3: [3.0, 3.0]}]) == {1: 0.0, 2: 0.0, 3: 1.0}


def test_nothing_is_removed_where_nothing_was_measured():
    assert kept_chances([{1: [0.1, 0.2]}, {1: [0.1, 0.2]}]) == {1: 0.0}


def test_chances_of_two_candidates_are_true():
    """A winner of 60 to 80 % of the resamples is the better one about as often."""
    generator, right, shares = random.Random(4), [], []
    while len(right) < 120:
        gap = generator.expovariate(1.0)
        losses = {site: [gap * site + generator.gauss(0, 1) for _ in range(8)] for site in (0, 1)}
        chances = kept_chances([losses], count=200)
        winner = min(losses, key=lambda site: math.fsum(losses[site]))
        if 0.6 < 1 - chances[winner] < 0.8:
            right.append(winner == 0)
            shares.append(1 - chances[winner])
    assert fmean(right) == pytest.approx(fmean(shares), abs=0.12)
