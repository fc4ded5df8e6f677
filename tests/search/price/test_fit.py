"""Curves through measured seconds: exact where the points lie on one, never falling, and told what they are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexcache.search.price.fit import fit, pays_from

coefficients = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
lengths = st.lists(st.integers(128, 1 << 20), min_size=3, max_size=8, unique=True)


def points_of(terms, at):
    return {length: sum(value * (length / 1e4) ** power for power, value in terms.items()) for length in at}


@settings(max_examples=60, deadline=None)
@given(first=coefficients, second=coefficients, at=lengths, powers=st.sampled_from([(0, 1), (1, 2)]))
def test_points_on_a_curve_are_met(first, second, at, powers):
    if not first and not second:
        first = 1.0
    terms = dict(zip(powers, (first, second), strict=True))
    curve = fit(points_of(terms, at), powers)
    assert curve.error < 1e-9
    for length in (1000, 77_777):
        assert curve.curve(length) == pytest.approx(points_of(terms, [length])[length], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    at=lengths,
    times=st.lists(st.floats(1e-4, 1e3), min_size=8, max_size=8),
    powers=st.sampled_from([(0, 1), (1, 2)]),
)
def test_a_curve_never_falls_and_is_as_near_as_any_single_power(at, times, powers):
    points = dict(zip(at, times, strict=False))
    curve = fit(points, powers)
    assert min(curve.coefficients) >= 0
    distance = lambda fitted: sum((fitted.curve(length) / seconds - 1) ** 2 for length, seconds in points.items())  # noqa: E731
    for power in powers:
        assert distance(curve) <= distance(fit(points, (power,))) * (1 + 1e-6) + 1e-12


def test_measured_lengths_give_what_was_measured():
    curve = fit({1000: 1.0, 2000: 2.2, 4000: 4.0}, (1, 2))
    assert (curve.at(2000).seconds, curve.at(2000).basis) == (2.2, "measured")
    assert curve.at(3000).basis == "fitted"
    assert curve.at(999).basis == curve.at(4001).basis == "extrapolated"
    assert 0.01 < curve.error < 0.1
    assert fit({1000: 5.0}, (1, 2)).curve(2000) == pytest.approx(10.0)
    assert fit({1000: 5.0}, (0, 1)).curve(2000) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("full", "shared", "length"),
    [
        ({1: 1.0, 2: 1.0}, {1: 1.0, 2: 0.5}, 0.0),
        ({1: 1.0, 2: 1.0}, {1: 2.0, 2: 0.5}, 20_000),
        ({1: 1.0, 2: 1.0}, {1: 0.5, 2: 2.0}, None),
        ({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}, None),
        ({1: 1.0, 2: 1.0}, {1: 0.5, 2: 1.0}, 0.0),
    ],
)
def test_sharing_pays_from_where_the_curves_cross(full, shared, length):
    at = (2000, 10_000, 50_000, 200_000)
    found = pays_from(fit(points_of(full, at), (1, 2)), fit(points_of(shared, at), (1, 2)))
    assert found == (None if length is None else pytest.approx(length, rel=1e-6))
