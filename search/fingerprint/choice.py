"""Chooses a few prefixes after which known patterns predict differently, by more than dtypes and backends do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .likelihood import LEAST_SPREAD, Array

PREFIXES: Final = 96
"""How many prefixes a fingerprint has by default."""
QUIET: Final = 6
"""Prefixes no longer than the selection, after which all patterns agree: there a server shows its noise alone."""
# Log-likelihood ratios that the prefixes together are to give a pair of patterns: several times what a verdict
# needs, as a server's noise may be larger.
_ENOUGH = 60.0
# What one prefix counts for at most: a stray answer must not decide.
_MOST_EACH = 3.0
# Prefixes of one window nearer than this see almost the same: their errors are alike.
_APART = 3
# How much pairs without the plan count.
_BESIDE = 0.2
# A prefix that no text gives can be sent to some servers only.
_WITHOUT_TEXT = 0.5
# How many measured variants the common spread counts for beside those of one prefix.
_COMMON = 2.0


class WindowPredictions(NamedTuple):
    """What known patterns predict in one window, see ``Predictions`` of the model.

    Args:
        positions: after which token each row predicts, ascending ``[rows]``.
        tokens: candidates of each row, then -1 ``[rows, candidates]``.
        logprobs: nats ``[rows, candidates, patterns]``.
        spread: how far dtypes and backends move a log-probability there, nats ``[rows]``.
    """

    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    spread: Array

    def of(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> WindowPredictions:
        """The same of some rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return WindowPredictions(
            self.positions[chosen], self.tokens[chosen], self.logprobs[chosen], self.spread[chosen]
        )


@dataclass(frozen=True)
class Choice:
    """A chosen prefix: a window, the row of its predictions, and its text."""

    window: int
    row: int
    text: str | None


def squared_moves(
    tokens: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float32],
    other_tokens: npt.NDArray[np.int64],
    other_logprobs: npt.NDArray[np.float32],
) -> Array:
    """How far another way of running a model moves log-probabilities, mean square of each row ``[rows]``.

    Args:
        tokens: candidates ``[rows, candidates]``, -1 behind.
        logprobs: nats ``[rows, candidates, patterns]``.
        other_tokens: likewise, of the other way; tokens that only one of them has do not count.
        other_logprobs: likewise, of the same patterns.
    """
    same = (tokens[:, :, None] == other_tokens[:, None, :]) & (tokens >= 0)[:, :, None]
    rows, here, there = np.nonzero(same)
    squares = (logprobs[rows, here].astype(float) - other_logprobs[rows, there].astype(float)) ** 2
    sums = np.bincount(rows, squares.mean(axis=1), minlength=len(tokens))
    return sums / np.maximum(1, np.bincount(rows, minlength=len(tokens)))


def spreads(moves: Sequence[Sequence[Array]], least: float = LEAST_SPREAD) -> list[Array]:
    """The spread of each row, by window, from the mean squares that ways of running a model move it.

    What moves most counts. A row's few draws are drawn towards what is common to all.

    Args:
        moves: mean squares ``[ways][windows][rows]``.
        least: no spread is below it.
    """
    by_window = (
        [np.max([way[window] for way in moves], axis=0) for window in range(len(moves[0]))] if moves else []
    )
    common = float(np.median(np.concatenate(by_window))) if by_window else 0.0
    draws = 1.0
    return [
        np.maximum(least, np.sqrt((draws * row_squares + _COMMON * common) / (draws + _COMMON)))
        for row_squares in by_window
    ]


def distances(window: WindowPredictions, top: int) -> Array:
    """How far any two patterns are apart after each row, in spreads ``[rows, patterns, patterns]``.

    Over the tokens that one of both has among its ``top`` likeliest, which a server would give.
    """
    logprobs = np.where(np.isnan(window.logprobs), -np.inf, window.logprobs).astype(float)
    ordered = np.sort(logprobs, axis=1)
    floors = ordered[:, max(0, ordered.shape[1] - top), None, :]
    likely = np.isfinite(logprobs) & (logprobs >= floors)
    finite = np.where(np.isfinite(logprobs), logprobs, 0.0)
    count = logprobs.shape[2]
    apart = np.empty((len(logprobs), count, count))
    for pattern in range(count):  # one at a time: all pairs of all rows at once would take gigabytes
        counted = likely | likely[:, :, pattern, None]
        squares = (finite - finite[:, :, pattern, None]) ** 2 * counted
        apart[:, pattern] = np.sqrt(squares.sum(axis=1) / np.maximum(1, counted.sum(axis=1)))
    return apart / window.spread[:, None, None]


def worth(apart: Array) -> Array:
    """What a distance in spreads is worth as a log-likelihood ratio, at twice the noise and with a cap."""
    return np.minimum(_MOST_EACH, np.log1p((apart / 2) ** 2 / 4))


def choose(
    windows: Sequence[WindowPredictions],
    selection_width: int,
    count: int,
    top: int,
    text_of: Callable[[int, int], str | None],
    named: int | None = None,
) -> list[Choice]:
    """Prefixes that tell patterns apart, the most telling first, and quiet ones behind.

    Each is the one that adds most to what the chosen ones tell, as far as pairs of patterns are not told apart
    well enough. Ends early where no prefix adds anything.

    Args:
        windows: all that was measured.
        selection_width: up to so many tokens all patterns agree.
        count: of prefixes, quiet ones included.
        top: log-probabilities that a server gives.
        text_of: the text of a window's prefix that ends at a position; None where no text gives it.
        named: the first so many patterns are told from all others, which need not be told from each other; all
            by default.
    """
    places, gains, weights = _gains(windows, selection_width, top, named)
    told = np.zeros(gains.shape[1])
    share = np.ones(len(places))
    texts: dict[int, str | None] = {}
    chosen: list[int] = []
    while len(chosen) < max(1, count - QUIET) and len(places):
        # The less a pair is told apart so far, the more it counts: or easy pairs would take all places.
        before, after = np.minimum(told, _ENOUGH), np.minimum(told + gains, _ENOUGH)
        added = (np.log1p((after - before) / (_MOST_EACH + before)) @ weights) * share
        if added.max() <= 0:
            break
        best = int(np.argmax(added))
        if best not in texts:
            window, row = places[best]
            texts[best] = text_of(window, int(windows[window].positions[row]))
            if texts[best] is None:
                share[best] = _WITHOUT_TEXT
                continue
        chosen.append(best)
        told += gains[best]
        share[_near(windows, places, places[best])] = 0
    telling = [Choice(*places[number], texts[number]) for number in chosen]
    return telling + _quiet(windows, selection_width, text_of)


def alike(windows: Sequence[WindowPredictions], choices: Sequence[Choice], top: int, needed: float) -> list[int]:
    """The patterns that the chosen prefixes together tell from the plan by less than ``needed``, by number."""
    told = sum(worth(distances(windows[choice.window].of([choice.row]), top))[0, 0] for choice in choices)
    return [number for number, value in enumerate(np.atleast_1d(told)) if number and value < needed]


def _gains(
    windows: Sequence[WindowPredictions], selection_width: int, top: int, named: int | None
) -> tuple[list[tuple[int, int]], Array, Array]:
    """Places of prefixes longer than the selection, what they tell of pairs ``[prefixes, pairs]``, pairs' weights.

    Pairs with the plan count most.
    """
    first, second = np.triu_indices(windows[0].logprobs.shape[2], 1)
    if named is not None:
        first, second = first[first < named], second[first < named]
    places: list[tuple[int, int]] = []
    gains: list[Array] = []
    for number, window in enumerate(windows):
        rows = np.flatnonzero(window.positions > selection_width)
        told = worth(distances(window.of(rows), top))
        places += [(number, int(row)) for row in rows]
        gains.append(told[:, first, second].astype(np.float32))
    return places, np.concatenate(gains), np.where(first == 0, 1.0, _BESIDE)


def _near(
    windows: Sequence[WindowPredictions], places: Sequence[tuple[int, int]], chosen: tuple[int, int]
) -> list[int]:
    """The places that are too near ``chosen`` to say anything new, itself among them."""
    positions = windows[chosen[0]].positions
    return [
        index
        for index, (window, row) in enumerate(places)
        if window == chosen[0] and abs(positions[row] - positions[chosen[1]]) < _APART
    ]


def _quiet(
    windows: Sequence[WindowPredictions], selection_width: int, text_of: Callable[[int, int], str | None]
) -> list[Choice]:
    """The longest prefix of each of the first few windows at which all patterns agree."""
    quiet: list[Choice] = []
    for number, window in enumerate(windows[:QUIET]):
        rows = np.flatnonzero(window.positions < selection_width)
        for row in rows[::-1]:
            text = text_of(number, int(window.positions[row]))
            if text is not None or row == rows[0]:
                quiet.append(Choice(number, int(row), text))
                break
    return quiet
