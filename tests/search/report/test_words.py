"""Figures in words."""

import pytest

from indexcache.search.plan.schema import MeasuredPattern
from indexcache.search.report.words import at_confidence, increase, layers, nats, percent, signed, stay


def measured(delta, **fields):
    return MeasuredPattern(kept=1, pattern="FS", loss=2 + delta, delta=delta, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"standard_error": 0.01, "low": 0.004, "high": 0.044}, "+0.0240 (0.0040 to 0.0440)"),
        ({"standard_error": 0.01, "low": -0.00001, "high": 0.044}, "+0.0240 (0.0000 to 0.0440)"),
        ({"standard_error": 0.01}, "+0.0240 ± 0.0100"),
        ({"standard_error": None}, "+0.0240"),
    ],
    ids=["interval", "almost zero", "an older plan", "one document"],
)
def test_an_increase_has_what_is_known_of_its_doubt(fields, words):
    assert increase(measured(0.024, **fields)) == words


def test_an_increase_says_its_confidence_where_no_heading_does():
    assert increase(measured(0.024, standard_error=0.01, low=0.004, high=0.044), 0.95) == (
        "+0.0240 (95 %: 0.0040 to 0.0440)"
    )


def test_a_heading_says_the_confidence_or_why_there_is_no_interval():
    bounded = measured(0.024, standard_error=0.01, low=0.004, high=0.044)
    alone = measured(0.024, standard_error=None)
    assert at_confidence([bounded, alone], 0.95) == " (95 %)"
    assert at_confidence([alone, alone], 0.95) == " (one document: no interval)"
    assert at_confidence([], 0.95) == " (95 %)"
    assert at_confidence([alone], None) == "", "plans of older versions have no confidence"


def test_how_often_kept_layers_stay_is_never_rounded_up():
    assert stay(0.25) == "each kept layer stays in at least 25 % of draws"
    assert stay(0.29) == "each kept layer stays in at least 29 % of draws"
    assert stay(0.999) == "each kept layer stays in at least 99 % of draws"
    assert stay(1.0) == "each kept layer stays in all draws"


def test_all_full_has_no_increase_and_what_is_missing_is_said():
    assert increase(measured(0.0, standard_error=0.0, low=0.0, high=0.0)) == "0"
    assert increase(None) == "not measured"


def test_small_costs_show_two_digits():
    assert [nats(value) for value in (0.0, 0.25, 0.0123, 0.00023, 0.0000382, 3e-9)] == [
        "0.0000", "0.2500", "0.0123", "0.00023", "0.000038", "0.0000000",
    ]  # fmt: skip


def test_no_figure_is_minus_nothing():
    assert signed(-0.00001) == "+0.0000"


def test_shares_and_layers():
    assert [percent(0.95), percent(0.999), percent(0.0004)] == ["95 %", "99.9 %", "0.04 %"]
    assert (layers([3]), layers([9, 3, 4])) == ("layer 3", "layers 3-4, 9")
