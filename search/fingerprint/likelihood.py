"""How likely a server's answer after one prefix is under every known pattern, under none, and at every noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .document import Fingerprint, Prefix

Array = npt.NDArray[np.float64]

SCALES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""How much noisier a server may be than what the fingerprint measured, as factors of its spread."""
# Student's t: near-ties that flip a selection make some answers far worse than most.
_FREEDOM = 3.0
STRAY: Final = 0.02
"""The share of a known pattern's answers that may be anything at all. It bounds what a single answer can prove."""
STRAYING: Final = (0.25, 0.5, 1.0)
"""Likewise of a pattern that is not known, and like a known one after some prefixes and not after others."""
# A prefix's tokens share the state that they come of: the errors of five tell about as much as those of two.
_TOKENS = 2.0
# Nats: how far an answer lies off that may be anything, at least.
_WIDE = 0.25
# Nats: no measured spread is below what a server's rounding of its answer makes.
LEAST_SPREAD = 1e-3


class AnswerLikelihoods(NamedTuple):
    """How likely an answer is, and how far off.

    Args:
        close: log-likelihoods where it is a pattern's, at every noise ``[patterns, scales]``.
        stray: the same where it may be anything.
        errors: mean absolute differences to every pattern in nats, ``[patterns]``.
        unknown: tokens that were given and that no known pattern has among its candidates.
    """

    close: Array
    stray: float
    errors: Array
    unknown: int

    def straying(self, share: float) -> Array:
        """Log-likelihoods where so large a share of answers may be anything ``[patterns, scales]``."""
        if share == 1:
            return np.full_like(self.close, self.stray)
        mixed: Array = np.logaddexp(np.log1p(-share) + self.close, np.log(share) + self.stray)
        return mixed


class PrefixTable:
    """What every known pattern predicts after one prefix, as arrays.

    Args:
        prefix: of a fingerprint.
        top: how many log-probabilities a server is asked for.
    """

    def __init__(self, prefix: Prefix, top: int) -> None:
        self.tokens = {candidate.token: row for row, candidate in enumerate(prefix.candidates)}
        self.logprobs: Array = np.array([candidate.logprobs for candidate in prefix.candidates])
        self.spread = max(prefix.spread, LEAST_SPREAD)
        ordered = np.sort(self.logprobs, axis=0)
        # What none of a pattern's top tokens is below: a token that is no candidate is no likelier.
        self._floors: Array = ordered[max(0, len(ordered) - top)]

    def distances(self) -> Array:
        """How far any two patterns are apart, ``[patterns, patterns]``: in spreads, over top tokens."""
        likely = self.logprobs >= self._floors
        gaps = (self.logprobs[:, :, None] - self.logprobs[:, None, :]) ** 2
        counted = likely[:, :, None] | likely[:, None, :]
        apart: Array = np.sqrt((gaps * counted).sum(axis=0) / counted.sum(axis=0)) / self.spread
        return apart

    def likelihoods(self, answer: Mapping[int, float]) -> AnswerLikelihoods:
        """How likely ``answer`` is, token ids with log-probabilities; an empty one says nothing."""
        residuals, unknown = self._residuals(answer)
        count = self.logprobs.shape[1]
        if not len(residuals):
            return AnswerLikelihoods(np.zeros((count, len(SCALES))), 0.0, np.zeros(count), unknown)
        scales = self.spread * np.array(SCALES)
        close = _log_density(residuals[:, :, None], scales).mean(axis=0) * _TOKENS
        middle = residuals.mean(axis=1)
        apart = max(_WIDE, float(np.sqrt(((residuals - middle[:, None]) ** 2).mean())))
        stray = float(_log_density(middle, apart).mean()) * _TOKENS
        return AnswerLikelihoods(close, stray, np.abs(residuals).mean(axis=0), unknown)

    def _residuals(self, answer: Mapping[int, float]) -> tuple[Array, int]:
        """How far ``answer`` is from every pattern, ``[tokens, patterns]``, and how many tokens are unknown.

        A candidate that was not given is no likelier than the least likely one that was: so it counts, by how
        much a pattern finds it likelier. So does a token that is no candidate, by how much it is above the floor.
        """
        if not answer:
            return np.empty((0, self.logprobs.shape[1])), 0
        least, rows, unknown = min(answer.values()), [], 0
        for token, logprob in answer.items():
            if (row := self.tokens.get(token)) is not None:
                rows.append(logprob - self.logprobs[row])
            else:
                unknown += 1
                rows.append(np.maximum(0.0, logprob - self._floors))
        for token, row in self.tokens.items():
            if token not in answer and (missing := np.maximum(0.0, self.logprobs[row] - least)).any():
                rows.append(-missing)
        return np.array(rows), unknown


def tables(fingerprint: Fingerprint) -> list[PrefixTable]:
    """The fingerprint's prefixes as arrays."""
    return [PrefixTable(prefix, fingerprint.top) for prefix in fingerprint.prefixes]


def _log_density(residuals: Array, scale: Array | float) -> Array:
    """Log of Student's t density of ``residuals`` at ``scale``, up to a constant that all share."""
    density: Array = -np.log(scale) - (_FREEDOM + 1) / 2 * np.log1p((residuals / scale) ** 2 / _FREEDOM)
    return density
