"""The trial of a running server: which known pattern its answers are of, asked one by one until that is sure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from .document import Fingerprint
from .likelihood import SCALES, STRAY, STRAYING, AnswerLikelihoods, Array, tables

MISTAKES: Final = 0.01
"""The share of verdicts that may be wrong."""
# Wald: a likelihood ratio of 1 / MISTAKES would do if answers erred as this model of them says.
_SURE = math.log(1e4)
# That a pattern is none of the known ones is a guess at what these may be, and many guesses: 1 / MISTAKES does.
_FITS = math.log(1 / MISTAKES)
# Answers that a verdict needs at least, so that no stray one decides.
_LEAST = 8
# How likely each factor on the spread is beforehand: a server in bf16 is about as noisy as what was measured.
_SCALE_SHARES = (0.2, 0.35, 0.25, 0.12, 0.06, 0.02)
# A server noisier than that by far is not told to run a pattern.
_NOISIEST = 8.0
# How many times further off than quiet answers the others may be under a pattern that is run: an engine whose
# indexer computes in eight bits errs there alone. Beyond the second number a pattern is not run.
_MORE, _FAR_MORE = 4.0, 10.0
# Other patterns have no near ones known that would be told from them: they are held to fit better.
_MORE_OF_OTHERS = 2.0
# Answers that such a comparison needs, and what quiet ones are taken to be off at least, in spreads.
_ENOUGH_TO_COMPARE, _LEAST_NOISE = 24, 0.5

Kind = Literal["plan", "other", "none", "unsure"]


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    Args:
        log_ratios: of each known pattern's likelihood to the plan's, by its name.
        none_log_ratio: likewise of no known pattern.
        requests: answers that were looked at.
        errors: mean absolute difference to each pattern's log-probabilities, nats, by its name.
        noise: how noisy the server is, as a factor of the spread that the fingerprint measured.
        deviations: how far answers are from the best pattern, in standard deviations measured by the fingerprint.
        unknown: tokens that were given and that no known pattern finds likely.
    """

    log_ratios: Mapping[str, float]
    none_log_ratio: float
    requests: int
    errors: Mapping[str, float]
    noise: float
    deviations: float
    unknown: int


@dataclass(frozen=True)
class Verdict:
    """What a server runs: the plan, another known pattern, none of those that are known, or not sure.

    ``pattern`` names it where it is a known one.
    """

    kind: Kind
    pattern: str | None
    evidence: Evidence


class Trial:
    """A sequential test over known patterns and none of them.

    Every answer multiplies what it is worth into each pattern's likelihood. The noise of the server is not known:
    likelihoods are averaged over how much noisier it may be than what the fingerprint measured.

    Args:
        fingerprint: of the plan.
        max_requests: after so many answers it ends, sure or not.
    """

    def __init__(self, fingerprint: Fingerprint, max_requests: int) -> None:
        self._names = [pattern.name for pattern in fingerprint.patterns]
        self._near = np.array([pattern.near for pattern in fingerprint.patterns])
        self._tables = tables(fingerprint)
        self._budget = min(max_requests, len(self._tables))
        # How far patterns are told apart by a prefix, as a log-likelihood ratio that no stray answer exceeds.
        self._tells: Array = np.array([np.log1p(table.distances() ** 2 / 4) for table in self._tables])
        # By length, not by what was measured: kernels may round a pattern's otherwise where its keys are the same.
        width = fingerprint.model.selection_width
        self._quiet = [len(prefix.tokens) <= width for prefix in fingerprint.prefixes]
        self._answers: dict[int, AnswerLikelihoods] = {}
        self._patterns: Array = np.zeros((len(self._names), len(SCALES)))
        self._none: Array = np.zeros((len(STRAYING), len(self._names), len(SCALES)))

    @property
    def requests(self) -> int:
        """Answers so far."""
        return len(self._answers)

    def next_prefix(self) -> int | None:
        """The most telling prefix that was not asked yet; None when the trial is over."""
        if self.verdict() is not None:
            return None
        return self._next()

    def _next(self) -> int | None:
        left = [number for number in range(len(self._tables)) if number not in self._answers]
        quiet = [number for number in left if self._quiet[number]]
        asked_quiet = sum(self._quiet[number] for number in self._answers)
        # Where all patterns agree only the noise shows: one in four of the first answers is of such a prefix.
        if quiet and asked_quiet * 4 <= self.requests:
            return quiet[0]
        ratios = self._log_likelihoods()[0]
        lead = int(np.argmax(ratios))
        # What is least refuted counts most.
        open_ = np.exp(np.maximum(ratios - ratios[lead], -_SURE) / 4)
        open_[lead] = 0
        worth = {number: float((self._tells[number][lead] * open_).sum()) for number in left}
        return max(left, key=lambda number: worth[number], default=None)

    def observe(self, prefix: int, logprobs: Mapping[int, float]) -> None:
        """Takes a server's answer after a prefix: token ids with log-probabilities in nats.

        Tokens that no known pattern finds likely count by how likely the server finds them; no token at all says
        nothing, and counts as an answer.
        """
        answer = {token: logprob for token, logprob in logprobs.items() if not math.isnan(logprob)}
        likelihoods = self._tables[prefix].likelihoods({token: max(lp, -1e4) for token, lp in answer.items()})
        if prefix in self._answers:
            raise ValueError(f"prefix {prefix} was answered before")
        self._answers[prefix] = likelihoods
        self._patterns = self._patterns + likelihoods.straying(STRAY)
        self._none = self._none + [likelihoods.straying(share) for share in STRAYING]

    def verdict(self) -> Verdict | None:
        """What the answers say; None while more of them may say more."""
        kind, pattern = self._decided()
        if kind is None:
            if self.requests < self._budget:
                return None
            kind = "unsure"
        return Verdict(kind, pattern, self._evidence())

    def _decided(self) -> tuple[Kind | None, str | None]:
        if self.requests < _LEAST:
            return None, None
        known, none = self._log_likelihoods()
        # A near pattern stands for all that are as near, most of which are not known: it counts as none.
        named = np.where(self._near, -np.inf, known)
        lead = int(np.argmax(named))
        near = float(np.logaddexp.reduce(known, where=self._near, initial=-np.inf))
        if np.logaddexp(none, near) - float(np.logaddexp.reduce(named)) > _SURE:
            return "none", None
        excess = self._excess(lead)
        if excess > _FAR_MORE and self.requests >= _ENOUGH_TO_COMPARE:
            return "none", None
        against = float(np.logaddexp.reduce([near, *np.delete(named, lead)]))
        too_noisy = self._noise(lead) > _NOISIEST or excess > (_MORE if lead == 0 else _MORE_OF_OTHERS)
        if named[lead] - against < _SURE or named[lead] - none < _FITS or too_noisy:
            return None, None
        return ("plan" if lead == 0 else "other"), self._names[lead]

    def _excess(self, pattern: int) -> float:
        """How many times further off than quiet answers, which show the noise alone, the others are."""
        off = self._deviations(pattern)
        quiet = np.array([self._quiet[number] for number in self._answers])
        if quiet.all() or not quiet.any():
            return 0.0
        return float(np.median(off[~quiet]) / max(np.median(off[quiet]), _LEAST_NOISE))

    def _deviations(self, pattern: int) -> Array:
        """How far every answer is from a pattern, in the fingerprint's spreads ``[answers]``."""
        off = [self._answers[number].errors[pattern] / self._tables[number].spread for number in self._answers]
        return np.array(off)

    def _log_likelihoods(self) -> tuple[Array, float]:
        """Of every known pattern ``[patterns]`` and of none, the noise averaged out."""
        shares = np.log(_SCALE_SHARES)
        known: Array = np.logaddexp.reduce(self._patterns + shares, axis=1)
        alternatives = self._none.size // len(SCALES)
        return known, float(np.logaddexp.reduce(self._none + shares, axis=None)) - math.log(alternatives)

    def _noise(self, pattern: int) -> float:
        """The likeliest factor on the spread under a pattern."""
        return SCALES[int(np.argmax(self._patterns[pattern] + np.log(_SCALE_SHARES)))]

    def _evidence(self) -> Evidence:
        known, none = self._log_likelihoods()
        lead = int(np.argmax(known))
        numbers = list(self._answers)
        errors = np.array([self._answers[number].errors for number in numbers]).reshape(-1, len(self._names))
        mean = errors.mean(axis=0) if numbers else np.zeros(len(self._names))
        return Evidence(
            log_ratios=dict(zip(self._names, map(float, known - known[0]), strict=True)),
            none_log_ratio=none - float(known[0]),
            requests=self.requests,
            errors=dict(zip(self._names, map(float, mean), strict=True)),
            noise=self._noise(lead),
            deviations=float(np.median(self._deviations(lead))) if numbers else 0.0,
            unknown=sum(answer.unknown for answer in self._answers.values()),
        )
