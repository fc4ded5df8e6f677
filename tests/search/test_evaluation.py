"""Paired differences and the noise floor, against numbers worked out by hand."""

import math

import pytest

from indexcache.pattern import Pattern
from indexcache.search.evaluation import Evaluation, noise_floor, paired_difference

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


def test_the_noise_floor_is_the_largest_change_of_a_window():
    assert noise_floor(Evaluation(FULL, (1.0, 2.0)), Evaluation(FULL, (1.0, 1.75))) == 0.25


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_window_makes_the_loss_no_number(bad):
    evaluation = Evaluation(FULL, (1.0, bad))
    assert not evaluation.finite
    assert math.isnan(evaluation.loss)
