"""What of a loss increase is held to a limit, and what is said of one that does not pass."""

import pytest

from indexcache.pattern import Pattern
from indexcache.search.gate import Gate, MeasuredIncrease, measured_increase
from indexcache.search.losses import Evaluation
from indexcache.search.plan.schema import MeasuredPattern


def measured(delta, high):
    return MeasuredPattern(
        kept=1, pattern="FS", loss=2.0 + delta, delta=delta, standard_error=None, low=None, high=high
    )


@pytest.mark.parametrize(
    ("delta", "high", "by_interval", "by_estimate"),
    [
        (0.01, 0.02, True, True),
        (0.01, 0.03, True, True),
        (0.01, 0.04, False, True),
        (0.04, 0.05, False, False),
        (-0.01, 0.04, False, True),
        (0.01, None, False, True),
        (0.0, 0.0, True, True),
    ],
)
def test_the_upper_end_or_the_estimate_is_at_most_the_limit(delta, high, by_interval, by_estimate):
    assert Gate().passes(measured(delta, high), 0.03) is by_interval
    assert Gate("estimate").passes(measured(delta, high), 0.03) is by_estimate


def test_without_a_limit_nothing_passes_or_fails():
    assert Gate().passes(measured(9.0, None), None) is None


@pytest.mark.parametrize(
    ("delta", "high", "says"),
    [
        (0.04, 0.05, "it increases by +0.04000, above --limit 0.03"),
        (0.01, 0.04, "it increases by +0.01000, but at 90 % confidence perhaps by +0.04000, above --limit 0.03"),
        (0.01, None, "it increases by +0.01000, but one document gives no upper end to hold to --limit 0.03"),
    ],
)
def test_a_failure_says_which_of_them_is_above(delta, high, says):
    assert Gate(confidence=0.9).failure(measured(delta, high), 0.03, "--limit", "it") == says


def test_an_increase_has_its_interval_and_that_of_all_full_is_zero():
    full = Evaluation.of_losses(Pattern("FF"), (1.0, 2.0, 3.0))
    shared = Evaluation.of_losses(Pattern("FS"), (1.1, 2.3, 3.2))
    increase = measured_increase(shared, full, 0.95)
    assert increase.delta == pytest.approx(0.2)
    assert increase.low < 0.2 < increase.high
    assert measured_increase(full, full, 0.95) == MeasuredIncrease(0.0, 0.0, 0.0, 0.0)


def test_one_document_has_no_interval():
    full, shared = (Evaluation.of_losses(Pattern(name), (1.0, 2.0), (7, 7)) for name in ("FF", "FS"))
    increase = measured_increase(shared, full, 0.95)
    assert (increase.standard_error, increase.low, increase.high) == (None, None, None)
    assert Gate().passes(increase, 1.0) is False
