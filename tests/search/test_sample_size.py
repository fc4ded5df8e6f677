"""How many windows a decided plan takes, worked out by hand."""

import math

import pytest

from indexcache.search.intervals import Interval, Margin
from indexcache.search.losses import Difference
from indexcache.search.sample_size import Choice, look_confidence, look_count, outlook


def apart(delta, error):
    """A margin whose interval is two standard errors wide on either side."""
    return Margin(Difference(delta, error), Interval(delta - 2 * error, delta + 2 * error, 0.95))


def test_a_plan_whose_margins_are_decided_is_decided():
    result = outlook([Choice(3, {4: apart(1.0, 0.1)}), Choice(5, {4: apart(0.5, 0.1)})], 16, 16, 128)
    assert result.decided
    assert (result.ties, result.undecidable, result.windows) == ((), (), None)


def test_a_rival_that_is_removed_too_is_no_tie():
    choices = [Choice(3, {4: apart(0.1, 0.1)}), Choice(4, {6: apart(1.0, 0.1)})]
    assert outlook(choices, 16, 16, 128).decided
    assert not outlook(choices[:1], 16, 16, 128).decided


def test_the_forecast_is_where_the_difference_is_t_standard_errors():
    result = outlook([Choice(3, {4: apart(1.0, 1.0)})], 16, 16, 1000)
    # On 64 windows it is 2 standard errors, t with 63 degrees of freedom 1.9983; on 63, 1.9843 and 1.9990.
    assert (result.ties[0].removed, result.ties[0].kept) == (3, 4)
    assert result.ties[0].windows == 64
    # Were it two: on 18 windows it is 2.1213 standard errors, t with 17 2.1098; on 17, 2.0616 and 2.1199.
    assert result.ties[0].fewest == 18
    assert result.windows == 32


def test_windows_double_up_to_those_there_are():
    assert outlook([Choice(3, {4: apart(1.5, 1.0)})], 16, 16, 20).windows == 20
    assert outlook([Choice(3, {4: apart(1.5, 1.0)})], 20, 20, 20).windows is None
    assert outlook([Choice(3, {4: apart(1.5, 1.0)})], 20, 20, 20).undecidable


def test_a_tie_that_needs_more_than_there_are_is_undecidable():
    # Even one standard error more than measured would take about 4 times the windows.
    hopeless, open_ = apart(0.05, 1.0), apart(1.0, 1.0)
    result = outlook([Choice(3, {4: hopeless})], 32, 32, 64)
    assert result.undecidable == result.ties
    assert result.windows is None
    # Another tie that can be decided is worth the windows all the same.
    both = outlook([Choice(3, {4: hopeless, 5: open_})], 32, 32, 64)
    assert [tie.kept for tie in both.undecidable] == [4]
    assert both.windows == 64


def test_a_difference_within_the_noise_floor_is_undecidable():
    certain = apart(0.01, 0.001)
    assert outlook([Choice(3, {4: certain})], 8, 8, 10**6).decided
    result = outlook([Choice(3, {4: certain})], 8, 8, 10**6, noise_floor=0.02)
    assert result.undecidable == result.ties
    assert result.ties[0].windows == result.ties[0].fewest == math.inf


@pytest.mark.parametrize("delta", [0.0, 1e-200])
def test_no_difference_is_forecast_for_no_number(delta):
    result = outlook([Choice(3, {4: apart(delta, 1.0)})], 8, 8, 10**6)
    assert result.ties[0].windows == math.inf
    assert 8 < result.ties[0].fewest < 64


def test_one_document_calls_for_more():
    unknown = Margin(Difference(0.5, None), Interval(-math.inf, math.inf, 0.95))
    result = outlook([Choice(3, {4: unknown})], 4, 1, 64)
    assert result.windows == 8
    assert not result.undecidable
    assert outlook([Choice(3, {4: unknown})], 4, 1, 4).windows is None


def test_a_rival_seen_on_fewer_windows_is_forecast_from_those():
    """The same ratio of difference and error says more windows where it took more of them to come by."""
    seen = Margin(Difference(1.0, 1.0), Interval(-1.0, 3.0, 0.95), windows=16)
    assert outlook([Choice(3, {4: seen})], 32, 32, 1000).ties[0].windows == 64
    assert outlook([Choice(3, {4: apart(1.0, 1.0)})], 32, 32, 1000).ties[0].windows > 100
    # On 18 windows it would be decided, and on the 32 there are it was not looked at again.
    assert outlook([Choice(3, {4: seen})], 32, 32, 1000).ties[0].fewest == 33


def test_looks_are_counted_and_share_the_error():
    assert [look_count(8, available) for available in (8, 9, 16, 17, 128)] == [1, 2, 2, 3, 5]
    assert look_count(8, 4) == 1
    assert look_confidence(0.95, 5) == pytest.approx(0.99)
