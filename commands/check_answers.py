"""Reads what servers answer to a completion: log-probabilities of next tokens, by the tokens' ids."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ServerError
from ..search.fingerprint.document import LOWEST, Prefix

_HIGHEST = 1e-3  # an engine's rounding may put the logarithm of 1 so far above 0
_TOKEN_ID = re.compile(r"token_id:(\d{1,10})")
# What decodes to no text of its own: bytes of a longer character, and how servers write them.
_BYTES = re.compile(r"�|^$|bytes:|^<0x[0-9A-Fa-f]{2}>$")
_MOST_ENTRIES = 100_000


@dataclass(frozen=True)
class Reply:
    """What a server gives for the token after a prefix.

    Args:
        logprobs: log-probabilities in nats by token id; ids below 0 stand for texts that no candidate has.
        by_text: whether tokens were named by their texts, so that some cannot be told apart.
        counted: the prompt's tokens, as the server counts them; None where it does not say.
        inside: of positions within the prefix, where they were asked for, likewise.
    """

    logprobs: Mapping[int, float]
    by_text: bool
    counted: int | None
    inside: Mapping[int, Mapping[int, float]]

    @property
    def is_sampled(self) -> bool:
        """Whether they are of the choice that was made, not of the model: one token has all the probability."""
        likely = [value for value in self.logprobs.values() if value > -1000]
        return len(likely) == 1 and likely[0] > -1e-6


@dataclass(frozen=True)
class Entry:
    """A token and its log-probability as a server gives them: by its id, or by its text alone."""

    label: int | str
    value: object


def distinct_texts(prefix: Prefix) -> dict[str, int | None]:
    """Candidates by their texts; None where a text is no token's alone."""
    counts = Counter(candidate.text for candidate in prefix.candidates)
    return {
        candidate.text: None if counts[candidate.text] > 1 or _BYTES.search(candidate.text) else candidate.token
        for candidate in prefix.candidates
    }


def read_completion(document: Mapping[str, Any], prefix: Prefix) -> Reply | None:
    """What an answer of /completions says of the token after ``prefix``; None if it has no log-probabilities.

    Raises:
        ServerError: it is laid out as none that is known, or has log-probabilities that cannot be.
    """
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerError("the server's answer has no choices")
    entries = _entries(choices[0].get("logprobs"))
    if not entries:
        return None
    usage = document.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Reply(
        _by_id(entries, distinct_texts(prefix)),
        any(isinstance(entry.label, str) for entry in entries),
        counted if isinstance(counted, int) else None,
        _inside(choices[0].get("prompt_logprobs")),
    )


def read_generation(document: Mapping[str, Any], prefix: Prefix) -> Reply | None:
    """As ``read_completion``, of SGLang's and LMDeploy's own /generate: rows of log-probability and token id.

    LMDeploy gives the chosen token's alone.
    """
    about = document.get("meta_info")
    if not isinstance(about, dict):
        return None
    entries: list[Entry] = []
    for name in ("output_top_logprobs", "output_token_ids_logprobs"):
        rows = _first(about.get(name))
        entries += _rows(rows)
    entries = entries or _rows(about.get("output_token_logprobs"))[:1]
    if not entries or not all(type(entry.label) is int for entry in entries):
        return None
    counted = about.get("prompt_tokens")
    return Reply(_by_id(entries, {}), False, counted if isinstance(counted, int) else None, {})


def _rows(rows: object) -> list[Entry]:
    """Rows of log-probability and token id."""
    listed = rows if isinstance(rows, list) else []
    return [Entry(row[1], row[0]) for row in listed if isinstance(row, list) and len(row) > 1]


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _entries(logprobs: object) -> list[Entry]:
    """The first new token's alternatives, in any of the layouts that servers use."""
    if not isinstance(logprobs, dict):
        return []
    content = _first(logprobs.get("content"))
    if isinstance(content, dict):  # as in chats: llama.cpp's own server, mlx-lm
        return _listed(content.get("top_logprobs")) or _listed([content])
    top = _first(logprobs.get("top_logprobs"))
    entries = _listed(top) if isinstance(top, list) else []
    if isinstance(top, dict):
        entries = [Entry(_label(name), value) for name, value in top.items()]
    token, value = _first(logprobs.get("tokens")), _first(logprobs.get("token_logprobs"))
    if isinstance(token, str) and value is not None and not any(entry.label == _label(token) for entry in entries):
        entries.append(Entry(_label(token), value))
    return entries


def _listed(rows: object) -> list[Entry]:
    """Alternatives as a list of objects, with ids where the server gives them."""
    if not isinstance(rows, list):
        return []
    entries = []
    for row in rows[:_MOST_ENTRIES]:
        if not isinstance(row, dict):
            continue
        token = next((row[name] for name in ("id", "token_id") if type(row.get(name)) is int), row.get("token"))
        if isinstance(token, int | str):
            entries.append(Entry(_label(token), row.get("logprob")))
    return entries


def _label(token: int | str) -> int | str:
    """A token's id where that is given, in vLLM's ``token_id:123`` too; else its text."""
    match = _TOKEN_ID.fullmatch(token) if isinstance(token, str) else None
    return int(match[1]) if match else token


def _by_id(entries: Iterable[Entry], texts: Mapping[str, int | None]) -> dict[int, float]:
    """Log-probabilities by id; a text that several tokens have is left out.

    Raises:
        ServerError: no numbers, or no log-probabilities.
    """
    logprobs: dict[int, float] = {}
    total = 0.0
    for number, entry in enumerate(entries):
        value = _checked(entry.value)
        label = entry.label
        if isinstance(label, str):
            known = texts.get(label, None if _BYTES.search(label) else -1 - number)
            if known is None:
                continue
            label = known
        if label not in logprobs:
            total += math.exp(value)
        logprobs[label] = value
    if total > 1.05:
        raise ServerError("the server's log-probabilities are of more than certainty, so that they are none")
    return logprobs


def _checked(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ServerError("the server gives a log-probability that is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number) or number > _HIGHEST:
        raise ServerError(f"the server gives {number:g} as a log-probability, which is none")
    return max(number, LOWEST)


def _inside(positions: object) -> dict[int, dict[int, float]]:
    """vLLM's prompt_logprobs: of each position the tokens that could stand there, by id."""
    if not isinstance(positions, list):
        return {}
    inside = {}
    for position, tokens in enumerate(positions):
        if not isinstance(tokens, dict) or not tokens:  # None for the first
            continue
        entries = [
            Entry(int(name), value.get("logprob") if isinstance(value, dict) else value)
            for name, value in tokens.items()
            if name.isdecimal() and len(name) <= 10
        ]
        inside[position] = _by_id(entries, {})
    return inside
