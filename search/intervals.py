"""How sure a loss difference is: intervals, decided and tied choices, and tests, over documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from .losses import Difference, mean_difference

CONFIDENCE = 0.95
_MOST_STANDARD_ERRORS = 6.0

# Of the trapezoidal rule, whose error falls exponentially with the spacing: 9 digits and more at any tail in use.
_SPACING, _POINTS = 0.125, 320


@dataclass(frozen=True)
class Interval:
    """Where a true mean difference lies, in nats per label.

    Args:
        low: its lower end; minus infinity where one document is all there is.
        high: its upper end; infinity likewise.
        confidence: how often such an interval holds the true mean.
    """

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Margin:
    """How much dearer a rival is than the winner of a step: its loss difference, and the interval of that.

    ``windows`` is how many both were seen on; None for all that were measured.
    """

    difference: Difference
    interval: Interval
    windows: int | None = None

    def beyond(self, noise_floor: float = 0.0) -> bool:
        """Whether the whole interval is above zero, and the difference above what rounding does."""
        return self.interval.low > 0 and self.difference.delta > noise_floor


def document_sizes(documents: Sequence[int], windows: int) -> tuple[int, ...]:
    """How many of the ``windows`` are of each document, ascending.

    Args:
        documents: the document of each window; empty where no two windows share one.
        windows: how many there are.
    """
    return tuple(sorted(Counter(documents).values())) if documents else (1,) * windows


def tail_probability(ratio: float, sizes: Sequence[int]) -> float:
    """The chance that a mean whose true value is zero exceeds ``ratio`` of its standard errors.

    Documents of equal size give Student's t with one degree of freedom less than there are documents. For others
    no degrees of freedom hold in general, so the chance is computed: let the ``n[g]`` windows of a document have
    one value ``Z[g]``, standard normal. With ``p[g] = n[g] / n`` and ``q[g] = p[g] / (1 - p[g])`` the mean is
    ``x = sum of p[g] Z[g]``, and ``mean_difference`` has the squared standard error
    ``s^2 = (G - 1) / G * sum of q[g]^2 (Z[g] - x)^2``. Then ``x^2 - ratio^2 s^2`` is a quadratic form with one
    positive eigenvalue; over the others, divided by it and negated, ``r[j]``, it is positive with the chance
    ``2 / pi * integral from 0 to infinity of product over j of (1 + r[j] cosh(y)^2)^(-1/2) / cosh(y) dy``
    (Craig's form of the normal tail, averaged over the other squares). Where a document's windows differ among
    themselves, the true chance is another: for 5 % it is 1 to 6 % in the most unequal sizes simulated.

    Args:
        ratio: not negative.
        sizes: windows of each document, at least two of them.
    """
    import numpy as np

    of_size = Counter(sizes)
    size, count = np.array(list(of_size), dtype=float), np.array(list(of_size.values()), dtype=float)
    share = size / sum(sizes)
    odds = share / (1 - share)
    factor = ratio * ratio * (len(sizes) - 1) / len(sizes)
    # On the documents of one size: their sum, scaled to length one, and the contrasts among them.
    means, pulls = share * np.sqrt(count), odds**2 * np.sqrt(count)
    form = np.outer(means, means) * (1 - factor * (count @ odds**2)) - factor * np.diag(odds**2)
    form += factor * (np.outer(means, pulls) + np.outer(pulls, means))
    *negative, positive = np.linalg.eigvalsh(form)
    values = np.concatenate([-np.array(negative), factor * odds**2]) / positive
    multiplicity = np.concatenate([np.ones(len(negative)), count - 1])
    cosh = np.cosh(_SPACING * np.arange(_POINTS))
    logarithms = np.log1p(np.outer(cosh**2, np.maximum(values, 0.0))) @ multiplicity
    heights = np.exp(-0.5 * logarithms) / cosh
    return float(_SPACING / math.pi * (heights.sum() - heights[0] / 2))


@lru_cache(maxsize=1024)
def critical_value(tail: float, sizes: tuple[int, ...]) -> float:
    """How many standard errors a mean is away from its true value, on one side, with the chance ``tail``.

    Infinite for one document, which says nothing of the spread between documents.

    Args:
        tail: above 0 and at most 0.5.
        sizes: windows of each document.

    Raises:
        ValueError: no such ``tail``.
    """
    if not 0 < tail <= 0.5:
        raise ValueError(f"a tail is above 0 and at most 0.5, not {tail}")
    if len(sizes) < 2:
        return math.inf
    low, high = 0.0, 1.0
    while tail_probability(high, sizes) > tail:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tail_probability(middle, sizes) > tail else (low, middle)
    return high


def interval(
    differences: Sequence[float], documents: Sequence[int] = (), confidence: float = CONFIDENCE
) -> Interval:
    """The interval of a mean difference, two-sided and as often missed below as above.

    It reaches ``critical_value`` standard errors to either side, and on the side to which the documents are skewed
    further by ``skewness of the mean * (1 + 2 z^2) / 6`` of them, ``z`` the normal quantile: the first term of the
    Edgeworth expansion of a studentised mean (Johnson, 1978; Hall, 1983). It is never made narrower.

    A 95 % interval holds the true mean (``bench_intervals.py``) of 2 to 64 normal documents in 95 to 96 % of
    cases, of heavy-tailed ones (t with 3 degrees of freedom) in 95 to 97 %; of very unequal normal ones in 94 to
    98 %, up to 99 % where one has most windows and these are independent. Of 2 to 8 exponential documents it is 90
    to 92 %, from 16 on 94 to 96 %; of lognormal ones of skewness 6 85 to 94 %: few documents do not show their
    skewness, and no interval makes up for that. Student's t alone has 88 to 94 % and 82 to 91 % there.

    Args:
        differences: one value per window, nats per label.
        documents: the document of each window; empty where no two windows share one.
        confidence: above 0 and below 1.
    """
    tail = (1 - confidence) / 2
    return Interval(_end(differences, documents, tail, -1), _end(differences, documents, tail, 1), confidence)


def _end(differences: Sequence[float], documents: Sequence[int], tail: float, side: int) -> float:
    """The upper (``side`` 1) or lower (-1) end that the true mean is beyond with the chance ``tail``."""
    difference = mean_difference(differences, documents)
    if difference.standard_error is None:
        return side * math.inf
    z = NormalDist().inv_cdf(1 - tail)
    skewness = side * _skewness_of_mean(differences, documents, difference) * (1 + 2 * z * z) / 6
    value = critical_value(tail, document_sizes(documents, len(differences)))
    return difference.delta + side * (value + max(skewness, 0.0)) * difference.standard_error


def _skewness_of_mean(differences: Sequence[float], documents: Sequence[int], difference: Difference) -> float:
    """Third central moment of the mean over the cube of its standard error; 0 where two documents are all.

    From how far each document moves the mean, as the standard error is: ``(G - 1)^2 / (G (G - 2))`` times the sum
    of the cubes, which for equal documents is the unbiased third moment over ``G^2``.
    """
    residuals: dict[int, list[float]] = {}
    n = len(differences)
    for document, value in zip(documents or range(n), differences, strict=True):
        residuals.setdefault(document, []).append(value - difference.delta)
    count = len(residuals)
    if count < 3 or not difference.standard_error:
        return 0.0
    pulls = [math.fsum(values) / (n - len(values)) / difference.standard_error for values in residuals.values()]
    return (count - 1) ** 2 / (count * (count - 2)) * math.fsum(pull**3 for pull in pulls)


def margin(
    winner: Sequence[float],
    rival: Sequence[float],
    documents: Sequence[int] = (),
    confidence: float = CONFIDENCE,
) -> Margin:
    """How much dearer ``rival`` is than ``winner``, from their losses on the same windows.

    The interval is two-sided although only its lower end decides, since the winner was picked on these windows:
    of two equal candidates one always seems better, and a one-sided test calls that decided twice too often.
    """
    differences = [loss - lowest for loss, lowest in zip(rival, winner, strict=True)]
    ends = interval(differences, documents, confidence)
    return Margin(mean_difference(differences, documents), ends, len(differences))


def chance_of_no_gain(
    losses: Sequence[float], before: Sequence[float], documents: Sequence[int] = (), choices: int = 1
) -> float:
    """The p-value of a one-sided paired test that ``losses`` are lower than ``before``: small where they are.

    Where ``losses`` are the best of several, measured on the same windows, each had its chance to seem better than
    it is, and the p-value is multiplied by their number (Bonferroni). Without that, a 5 % test calls the best of
    10 swaps that change nothing better in 19 % of cases at 4 documents and 23 % at 16, that of 100 in 38 and 52 %.

    Args:
        losses: one per window.
        before: on the same windows.
        documents: the document of each window; empty where no two windows share one.
        choices: of how many the lowest was taken.

    Returns:
        At most 1, which it is too where one document is all there is or the mean did not fall.
    """
    difference = mean_difference([after - old for after, old in zip(losses, before, strict=True)], documents)
    if difference.standard_error is None or not difference.delta < 0:
        return 1.0
    if difference.standard_error == 0:
        return 0.0
    sizes = document_sizes(documents, len(losses))
    return min(1.0, choices * tail_probability(-difference.delta / difference.standard_error, sizes))


def clearly_worse(difference: Difference, sizes: tuple[int, ...], standard_errors: float) -> bool:
    """Whether a pattern is worse by as many standard errors as are as unlikely as ``standard_errors`` of a normal.

    3 of a normal, 0.13 %, are 9.2 of 4 equal documents, 4.5 of 8, 3.6 of 16 and 3.3 of 32. So no fewest number of
    documents has to be set: 2 would need 236. In simulated races (``bench_intervals.py``) the best candidate
    leaves in 0 to 5 % of cases with 3 and in 5 to 39 % with 2, for one that is nearly as good: the regret is the
    same within 4 %, and 2 measure a tenth to two fifths fewer windows.

    Args:
        difference: of the pattern from the best one, on the same windows.
        sizes: windows of each document, see ``document_sizes``.
        standard_errors: of a normal distribution.
    """
    if difference.standard_error is None:
        return False
    # Beyond 6 of a normal no search takes as many windows as a chance so small would show on.
    tail = NormalDist().cdf(-min(standard_errors, _MOST_STANDARD_ERRORS))
    return difference.delta > critical_value(tail, sizes) * difference.standard_error
