"""Paired differences and the noise floor, against numbers worked out by hand."""

import math
import random
from itertools import chain
from statistics import fmean, stdev

import pytest
from loss_tables import LossTable

from indexcache.pattern import Pattern
from indexcache.search.losses import (
    Evaluation,
    Look,
    effective_documents,
    mean_difference,
    noise_floor,
    paired_difference,
)

FULL = Pattern("FF")


def evaluation(losses, documents=()):
    return Evaluation.of_losses(FULL, losses, documents)


def test_the_difference_is_paired_over_windows():
    difference = paired_difference(evaluation((1.1, 5.2, 3.3)), evaluation((1.0, 5.0, 3.0)))
    assert difference.delta == pytest.approx(0.2)
    # The differences .1 .2 .3 have standard deviation .1; the windows' own spread does not enter.
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3))


def test_a_single_window_has_no_standard_error():
    assert paired_difference(evaluation((2.0,)), evaluation((1.5,))).standard_error is None


def test_windows_of_different_number_do_not_compare():
    with pytest.raises(ValueError, match="longer"):
        paired_difference(evaluation((1.0,)), evaluation((1.0, 2.0)))


def test_windows_of_one_document_count_as_correlated():
    clustered = evaluation((1.0, 1.2, 2.0, 2.2), (4, 4, 9, 9))
    baseline = evaluation((0.0,) * 4, (4, 4, 9, 9))
    # Two documents with means 1.1 and 2.1: the error of the mean of two numbers.
    assert paired_difference(clustered, baseline).standard_error == pytest.approx(0.5)
    alone = evaluation((1.0, 1.2), (4, 4))
    assert paired_difference(alone, evaluation((0.0, 0.0))).standard_error is None


def test_documents_of_one_window_give_the_usual_standard_error():
    losses = (1.0, 1.5, 1.1, 1.9, 1.3)
    apart = paired_difference(evaluation(losses, (1, 2, 3, 4, 5)), evaluation((1.0,) * 5))
    assert apart.standard_error == pytest.approx(stdev(losses) / math.sqrt(5))


def drawn(sizes, shared, seed=0, runs=4000):
    """Means and their standard errors, where windows of a document share that part of their variance of 1."""
    generator = random.Random(seed)
    documents = list(chain(*([document] * size for document, size in enumerate(sizes))))
    results = []
    for _ in range(runs):
        effects = [generator.gauss(0, math.sqrt(shared)) for _ in sizes]
        losses = [effects[document] + generator.gauss(0, math.sqrt(1 - shared)) for document in documents]
        results.append(mean_difference(losses, documents))
    return [result.delta for result in results], [result.standard_error for result in results]


def share_outside(means, errors):
    """How often the true mean, zero, is further away than two standard errors."""
    return fmean(abs(mean) > 1.96 * error for mean, error in zip(means, errors, strict=True))


UNEQUAL = [[29, 1, 1, 1], [26, 1, 1, 1, 1, 1, 1], [15, 1], [7, 4, 2, 1, 1, 1], [16] + [1] * 16, [9, 9, 5, 5, 2, 2]]


@pytest.mark.parametrize("shared", [1.0, 0.3])
@pytest.mark.parametrize("sizes", UNEQUAL, ids=str)
def test_the_standard_error_is_true_where_one_document_has_most_windows(sizes, shared):
    means, errors = drawn(sizes, shared)
    true = stdev(means)
    assert 0.95 * true < math.sqrt(fmean(error**2 for error in errors)) < 1.6 * true
    # Of as many equal documents as these tell as much as, at least two, it errs no less often.
    fewest = sum(sizes) ** 2 / sum(size**2 for size in sizes)
    equals = drawn([1] * max(2, int(fewest)), 1.0)
    assert share_outside(means, errors) < share_outside(*equals) + 0.02


@pytest.mark.parametrize("sizes", [[1] * 16, [4] * 4, [16, 16], [3] * 5])
def test_equal_documents_have_the_usual_clustered_error(sizes):
    generator = random.Random(len(sizes))
    documents = [document for document, size in enumerate(sizes) for _ in range(size)]
    losses = [generator.random() for _ in documents]
    mean, count = math.fsum(losses) / len(losses), len(sizes)
    sums = [
        math.fsum(loss - mean for loss, origin in zip(losses, documents, strict=True) if origin == document)
        for document in range(count)
    ]
    usual = math.sqrt(count / (count - 1) * math.fsum(total**2 for total in sums)) / len(losses)
    assert mean_difference(losses, documents).standard_error == usual  # to the bit


def test_documents_of_unequal_size_tell_as_much_as_fewer_equal_ones():
    assert effective_documents([], 5) == 5
    assert effective_documents([7, 7, 3, 3, 2, 2], 6) == 3
    assert effective_documents([1] * 29 + [2, 3, 4], 32) == pytest.approx(32**2 / 844)


def test_the_noise_floor_is_what_rounding_does_to_a_mean():
    same_way = noise_floor(evaluation((1.0, 2.0)), evaluation((1.25, 2.25)))
    assert same_way == 0.25
    cancelling = noise_floor(evaluation((1.0, 2.0)), evaluation((1.25, 1.75)))
    assert cancelling == pytest.approx(0.25 / math.sqrt(2))
    assert noise_floor(evaluation((1.0, 2.0)), evaluation((1.0, 2.0))) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_window_makes_the_loss_no_number(bad):
    broken = evaluation((1.0, bad))
    assert not broken.finite
    assert math.isnan(broken.loss)


def test_looks_at_different_windows_are_one_sweep_and_measure_nothing_twice():
    table = LossTable(0, 4, windows=6)
    measurements = table.measurements()
    one, other = Pattern("FSFF"), Pattern("FFSF")
    measurements([one], 2)
    few, same, many = measurements.together([Look([one, other], 3), Look([other], 2), Look([one])])
    assert table.sweeps == 2
    assert len(table.measured) == len(set(table.measured)) == 6 + 3
    assert [evaluation.window_losses for evaluation in few] == [table.losses(one)[:3], table.losses(other)[:3]]
    assert same[0].window_losses == table.losses(other)[:2]
    assert many[0].window_losses == table.losses(one)
    measurements([one, other], 3)
    assert table.sweeps == 2, "all of it was known"
