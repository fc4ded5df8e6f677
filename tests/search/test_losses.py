"""Paired differences and the noise floor, against numbers worked out by hand."""

import math
from statistics import stdev

import pytest

from indexcache.pattern import Pattern
from indexcache.search.losses import Evaluation, noise_floor, paired_difference

FULL = Pattern("FF")


def test_the_difference_is_paired_over_windows():
    difference = paired_difference(Evaluation(FULL, (1.1, 5.2, 3.3)), Evaluation(FULL, (1.0, 5.0, 3.0)))
    assert difference.delta == pytest.approx(0.2)
    # The differences .1 .2 .3 have standard deviation .1; the windows' own spread does not enter.
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3))


def test_a_single_window_has_no_standard_error():
    assert paired_difference(Evaluation(FULL, (2.0,)), Evaluation(FULL, (1.5,))).standard_error is None


def test_windows_of_different_number_do_not_compare():
    with pytest.raises(ValueError, match="longer"):
        paired_difference(Evaluation(FULL, (1.0,)), Evaluation(FULL, (1.0, 2.0)))


def test_windows_of_one_document_count_as_correlated():
    clustered = Evaluation(FULL, (1.0, 1.2, 2.0, 2.2), (4, 4, 9, 9))
    baseline = Evaluation(FULL, (0.0,) * 4, (4, 4, 9, 9))
    # Two documents with means 1.1 and 2.1: the error of the mean of two numbers.
    assert paired_difference(clustered, baseline).standard_error == pytest.approx(0.5)
    alone = Evaluation(FULL, (1.0, 1.2), (4, 4))
    assert paired_difference(alone, Evaluation(FULL, (0.0, 0.0))).standard_error is None


def test_documents_of_one_window_give_the_usual_standard_error():
    losses = (1.0, 1.5, 1.1, 1.9, 1.3)
    apart = paired_difference(Evaluation(FULL, losses, (1, 2, 3, 4, 5)), Evaluation(FULL, (1.0,) * 5))
    assert apart.standard_error == pytest.approx(stdev(losses) / math.sqrt(5))


def test_the_noise_floor_is_what_rounding_does_to_a_mean():
    same_way = noise_floor(Evaluation(FULL, (1.0, 2.0)), Evaluation(FULL, (1.25, 2.25)))
    assert same_way == 0.25
    cancelling = noise_floor(Evaluation(FULL, (1.0, 2.0)), Evaluation(FULL, (1.25, 1.75)))
    assert cancelling == pytest.approx(0.25 / math.sqrt(2))
    assert noise_floor(Evaluation(FULL, (1.0, 2.0)), Evaluation(FULL, (1.0, 2.0))) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_window_makes_the_loss_no_number(bad):
    evaluation = Evaluation(FULL, (1.0, bad))
    assert not evaluation.finite
    assert math.isnan(evaluation.loss)
