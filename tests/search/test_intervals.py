"""Intervals and decisions: quantiles against tables, coverage and errors on seeded documents with known means."""

import math
import random
from itertools import chain
from statistics import fmean

import pytest

from indexcache.search.intervals import (
    chance_of_no_gain,
    clearly_worse,
    critical_value,
    document_sizes,
    interval,
    margin,
    tail_probability,
)
from indexcache.search.losses import Difference, mean_difference
from indexcache.search.strategies.greedy import undecided_sites


@pytest.mark.parametrize(
    ("tail", "documents", "value"),
    [  # Student's t with one degree of freedom less, from printed tables
        (0.025, 2, 12.7062),
        (0.025, 3, 4.30265),
        (0.025, 4, 3.18245),
        (0.05, 6, 2.01505),
        (0.005, 11, 3.16927),
        (0.025, 31, 2.04227),
        (0.001, 61, 3.23171),
        (0.025, 121, 1.97993),
    ],
)
def test_equal_documents_have_the_quantiles_of_students_t(tail, documents, value):
    assert critical_value(tail, (1,) * documents) == pytest.approx(value, rel=3e-6)
    assert critical_value(tail, (7,) * documents) == pytest.approx(value, rel=3e-6)


def test_the_tail_of_two_documents_is_cauchys():
    for ratio in (0.0, 0.3, 1.0, 8.0, 300.0):
        assert tail_probability(ratio, (1, 1)) == pytest.approx(0.5 - math.atan(ratio) / math.pi, rel=1e-9)


def test_one_document_bounds_nothing():
    assert critical_value(0.025, (5,)) == math.inf
    ends = interval([1.0, 2.0, 1.5], [4, 4, 4])
    assert (ends.low, ends.high) == (-math.inf, math.inf)
    assert not margin([1.0, 1.0], [9.0, 9.1], [3, 3]).beyond(0.0)
    assert chance_of_no_gain([1.0, 1.0], [9.0, 9.1], [3, 3]) == 1.0
    assert not clearly_worse(Difference(100.0, None), (8,), 3.0)


@pytest.mark.parametrize("tail", [0.0, -0.1, 0.51, 1.0])
def test_a_tail_that_is_none_is_refused(tail):
    with pytest.raises(ValueError, match="a tail is above 0"):
        critical_value(tail, (1, 1))


def test_sizes_count_windows_by_document():
    assert document_sizes((), 3) == (1, 1, 1)
    assert document_sizes((9, 2, 9, 9), 4) == (1, 3)


def test_a_symmetric_interval_is_the_mean_and_t_standard_errors():
    # 1, 2, 3: standard error 1 / sqrt(3), t with 2 degrees of freedom 4.30265; symmetric, so no skewness.
    ends = interval([1.0, 2.0, 3.0])
    assert ends.low == pytest.approx(2 - 4.30265 / math.sqrt(3), rel=1e-5)
    assert ends.high == pytest.approx(2 + 4.30265 / math.sqrt(3), rel=1e-5)
    assert ends.confidence == 0.95


def test_skewness_moves_the_end_on_its_side_out_and_no_end_in():
    values = [0.0, 0.0, 0.0, 4.0]  # mean 1, standard error 1, third moment over variance^(3/2) = 2 (unbiased)
    reach = 3.18245
    skewness = 2 / math.sqrt(4) * (1 + 2 * 1.959964**2) / 6
    ends = interval(values)
    assert ends.low == pytest.approx(1 - reach, rel=1e-5)
    assert ends.high == pytest.approx(1 + reach + skewness, rel=1e-5)
    mirrored = interval([-value for value in values])
    assert (mirrored.low, mirrored.high) == pytest.approx((-ends.high, -ends.low))


def test_windows_that_repeat_their_document_change_nothing():
    once = interval([0.1, 0.5, 0.2, 0.9])
    thrice = interval([0.1, 0.5, 0.2, 0.9] * 3, [1, 2, 3, 4] * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def coverage(sizes, draw, runs=3000, seed=0):
    """How often a 95 % interval holds the true mean, zero; ``draw`` draws a document's effect."""
    generator = random.Random(seed)
    documents = list(chain(*([document] * size for document, size in enumerate(sizes))))
    held = 0
    for _ in range(runs):
        effects = [draw(generator) for _ in sizes]
        ends = interval([effects[document] for document in documents], documents)
        held += ends.low <= 0 <= ends.high
    return held / runs


def normal(generator):
    return generator.gauss(0, 1)


def exponential(generator):
    return generator.expovariate(1.0) - 1


# 3000 runs at 95 % have a standard error of 0.4 %. The normal quantile gives 70, 82, 91, 80 and 84 %, Student's t
# with G - 1 degrees of freedom 89 % for the last two, and with Kish's effective documents less one 99 %.
@pytest.mark.parametrize("sizes", [[1] * 2, [1] * 3, [1] * 8, [29, 1, 1, 1], [26] + [1] * 6], ids=str)
def test_intervals_hold_the_mean_of_few_and_unequal_documents(sizes):
    assert 0.935 < coverage(sizes, normal) < 0.97


def test_intervals_of_skewed_documents_hold_the_mean_more_often_than_students():
    # Student's t: 91.4 % (bench_intervals.py).
    assert 0.928 < coverage([1] * 16, exponential) < 0.955


def undecided(winner, rivals, noise_floor=0.0):
    return undecided_sites({site: margin(winner, rival) for site, rival in enumerate(rivals)}, noise_floor)


def share_decided(candidates, documents, scales, runs):
    """How often a step of equal candidates is called decided."""
    generator = random.Random(candidates)
    decisions = 0
    for _ in range(runs):
        losses = [[scales[place] * generator.gauss(0, 1) for _ in range(documents)] for place in range(candidates)]
        losses.sort(key=fmean)
        decisions += not undecided(losses[0], losses[1:])
    return decisions / runs


def test_of_equal_candidates_few_steps_are_called_decided():
    # A one-sided quantile decides 10 % of two, the normal one 15 %.
    assert 0.03 < share_decided(2, 6, [1, 1], 2000) < 0.065
    assert share_decided(8, 6, [1, 1, 1, 1, 1, 1, 3, 10], 400) < 0.03


def test_every_rival_has_to_be_beaten():
    winner, second = [1.0, 1.1, 0.9, 1.0], [1.5, 1.6, 1.4, 1.5]
    noisy = [9.0, 0.5, 7.0, 0.2]
    assert undecided(winner, [second]) == ()
    assert undecided(winner, [second, noisy]) == (1,)
    assert undecided(winner, [second], noise_floor=0.5000001) == (0,)


def test_a_margin_holds_the_paired_difference_and_its_interval():
    rival = margin([1.0, 2.0, 3.0], [1.5, 2.4, 3.6], (), 0.9)
    assert rival.difference == mean_difference([0.5, 2.4 - 2, 3.6 - 3])
    assert rival.interval == interval([0.5, 2.4 - 2, 3.6 - 3], (), 0.9)
    assert rival.beyond()
    assert not rival.beyond(noise_floor=0.51)


def test_the_paired_test_is_one_sided_and_counts_the_choices():
    before, after = [1.0, 2.0, 3.0, 4.0], [0.9, 1.7, 2.8, 3.8]
    # Changes -.1 -.3 -.2 -.2: mean -.2, standard error .0408, ratio 4.899; Student's t with 3: 0.0081.
    assert chance_of_no_gain(after, before) == pytest.approx(0.00814, abs=2e-5)
    assert chance_of_no_gain(after, before, choices=10) == pytest.approx(0.0814, abs=2e-4)
    assert chance_of_no_gain(after, before, choices=1000) == 1.0
    assert chance_of_no_gain(before, after) == 1.0
    assert chance_of_no_gain(before, before) == 1.0
    assert chance_of_no_gain([1.0, 2.0], [1.5, 2.5]) == 0.0


def test_three_standard_errors_are_more_where_documents_are_few():
    def worse(ratio, documents):
        return clearly_worse(Difference(ratio, 1.0), (1,) * documents, 3.0)

    assert not worse(9.2, 4)
    assert worse(9.3, 4)
    assert not worse(235, 2)
    assert worse(3.2, 64)
    assert not worse(3.1, 64)
    assert clearly_worse(Difference(0.1, 0.0), (1, 1), 3.0)
    assert not clearly_worse(Difference(0.0, 0.0), (1, 1), 3.0)
    assert not clearly_worse(Difference(-1.0, 0.1), (1,) * 32, 3.0)
