"""Whether more windows would decide which sites stay full, and how many it would take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .intervals import CONFIDENCE, Margin, critical_value

_MANY_DOCUMENTS = 500  # whose t quantile is the normal one but for 0.3 %
_HOPELESS = 1e-3  # of a standard error: it would take a million times as many windows


@dataclass(frozen=True)
class Choice:
    """One removal of a search beside the sites that it was preferred to.

    Args:
        removed: the site that turned shared.
        margins: by rival, how much dearer that one would have been, on the windows that it was seen on.
    """

    removed: int
    margins: Mapping[int, Margin]


@dataclass(frozen=True)
class Tie:
    """Two sites of which one was removed and one stays full, though their losses do not tell which is better.

    Args:
        removed: the site that turned shared.
        kept: its rival, full at the end.
        windows: of how many a difference such as the measured one is expected to be decided, more than there were;
            infinite where it is within the noise floor.
        fewest: of how many, if the true difference is one standard error larger than the measured one.
    """

    removed: int
    kept: int
    windows: float
    fewest: float


@dataclass(frozen=True)
class Outlook:
    """What stands between a search and a decided plan.

    Args:
        ties: what is tied between removed and kept sites; none where the plan is decided.
        undecidable: those of them that no available number of windows can be expected to decide.
        windows: the number to measure next; None where the plan is decided, or where more would decide nothing.
    """

    ties: tuple[Tie, ...]
    undecidable: tuple[Tie, ...]
    windows: int | None

    @property
    def decided(self) -> bool:
        """Whether no site that was removed is tied with one that stays."""
        return not self.ties


def outlook(
    choices: Sequence[Choice],
    windows: int,
    documents: float,
    available: int,
    noise_floor: float = 0.0,
    confidence: float = CONFIDENCE,
) -> Outlook:
    """Whether the plan after ``choices`` is decided, and if not, whether more windows can decide anything in it.

    A rival that another step removed is no tie: the plan is the same in either order. Windows are doubled from
    look to look, so that all looks together cost at most twice the last, and so that their number is known
    beforehand, which ``look_confidence`` asks for.

    Args:
        choices: the removals down to the budget asked for.
        windows: how many they were measured on.
        documents: of how many equal documents these tell as much as, see ``effective_documents``.
        available: how many windows there can be.
        noise_floor: a difference within it is never decided, nats per label.
        confidence: of the margins' intervals.
    """
    removed = {choice.removed for choice in choices}
    ties = tuple(
        _tie(choice.removed, rival, margin, windows, documents, noise_floor, confidence)
        for choice in choices
        for rival, margin in choice.margins.items()
        if rival not in removed and not margin.beyond(noise_floor)
    )
    undecidable = tuple(tie for tie in ties if windows >= available or tie.fewest > available)
    more = len(undecidable) < len(ties)
    return Outlook(ties, undecidable, min(2 * windows, available) if more else None)


def look_count(windows: int, available: int) -> int:
    """How often a search looks at its plan while it doubles ``windows`` up to ``available``."""
    return 1 + math.ceil(math.log2(max(1.0, available / windows)))


def look_confidence(confidence: float, looks: int) -> float:
    """The confidence of one look so that all ``looks`` together keep ``confidence`` (Bonferroni).

    Two equal candidates are called decided at some look of four or five in 13 to 17 % of cases where each look is
    taken at 95 %, and in 3 to 4 % so (``bench_intervals.py looking_again``).
    """
    return 1 - (1 - confidence) / looks


def _tie(
    removed: int,
    kept: int,
    margin: Margin,
    windows: int,
    documents: float,
    noise_floor: float,
    confidence: float,
) -> Tie:
    delta, error = margin.difference.delta, margin.difference.standard_error
    if error is None:  # one document: nothing is known of what more would bring
        return Tie(removed, kept, math.inf, windows + 1)
    # A rival seen on fewer windows tells less; one that those many should have decided takes more all the same.
    seen = margin.windows or windows
    numbers = [
        max(windows + 1, _windows_to_decide(difference / error, seen, documents * seen / windows, confidence))
        if difference > max(noise_floor, _HOPELESS * error)
        else math.inf
        for difference in (delta, delta + error)
    ]
    return Tie(removed, kept, *numbers)


def _windows_to_decide(ratio: float, windows: int, documents: float, confidence: float) -> int:
    """The least ``n`` above ``windows`` with ``n >= windows (t / ratio)^2``, t at the documents that ``n`` have.

    ``ratio`` is the difference in standard errors of the present windows.
    """

    def enough(number: int) -> bool:
        equal = min(_MANY_DOCUMENTS, max(2, round(documents * number / windows)))
        return number * ratio**2 >= windows * critical_value((1 - confidence) / 2, (1,) * equal) ** 2

    low, high = windows, windows + 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
