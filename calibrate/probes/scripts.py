"""What a probe is made of: facts at depths, a question, the names in them, and how much of all."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from .names import Vocabulary

Slots = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """A part of a sentence that is encoded by itself.

    Args:
        content: text, or token ids where a probe is about tokens.
        answers: whether its tokens are an answer, and so are scored.
    """

    content: str | tuple[int, ...]
    answers: bool = False


@dataclass(frozen=True)
class Fact:
    """A planted line; ``depth`` is the fraction of the filler before it."""

    depth: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Script:
    """All that a probe is apart from its filler: facts, and what stands at the end."""

    facts: Sequence[Fact]
    question: Sequence[Piece]


@dataclass(frozen=True)
class Sizes:
    """How much a probe plants and asks.

    Args:
        pairs: facts of a key-value recall, the one asked for included.
        questions: how many of them are asked for.
        needles: facts that are all asked for at once.
        repeats: how often the request that is asked about is made.
        others: other requests between them.
        links: variables that pass a value on.
        chains: variables that were given another value, or people who live elsewhere.
        passage: tokens of a passage to copy.
        lead: its first tokens, which are not scored: they say which passage it is.
    """

    pairs: int = 6
    questions: int = 1
    needles: int = 4
    repeats: int = 3
    others: int = 2
    links: int = 2
    chains: int = 1
    passage: int = 32
    lead: int = 2


LEAST = Sizes(pairs=2, questions=1, needles=2, repeats=2, others=1, links=1, chains=1, passage=12, lead=1)
MOST = Sizes(pairs=8, questions=4, needles=6, repeats=4, others=4, links=3, chains=2, passage=64, lead=4)


def random_sizes(draw: random.Random, share: float = 1.0) -> Sizes:
    """Sizes for training: from ``LEAST`` up to ``share`` of the way to ``MOST``."""
    sizes = {}
    for item in fields(Sizes):
        least, most = getattr(LEAST, item.name), getattr(MOST, item.name)
        sizes[item.name] = draw.randint(least, least + round(share * (most - least)))
    return Sizes(**sizes)


class Cast:
    """What one window's scripts are made of; no name and no number comes twice.

    Args:
        draw: the window's random numbers.
        vocabulary: where names and numbers come from.
        token_ids: what passages are made of, ascending.
    """

    def __init__(self, draw: random.Random, vocabulary: Vocabulary, token_ids: Sequence[int]) -> None:
        self.draw = draw
        self.token_ids = token_ids
        self._vocabulary = vocabulary
        self._words: set[str] = set()

    def name(self) -> str:
        """A name that the window does not hold yet."""
        return self._new(self._vocabulary.name)

    def number(self) -> str:
        """A number that the window does not hold yet."""
        return self._new(self._vocabulary.number)

    def _new(self, make: Callable[[random.Random], str]) -> str:
        while (word := make(self.draw)) in self._words:
            pass
        self._words.add(word)
        return word


def sentence(template: str, slots: Slots, answer: str = "") -> tuple[Piece, ...]:
    """The pieces of a template; a slot takes the space before it along, as tokenizers do; ``answer`` names one."""
    return tuple(
        Piece(part.format_map(slots), bool(answer) and part.strip() == f"{{{answer}}}")
        if part.endswith("}")
        else Piece(part)
        for part in _parts(template)
    )


@lru_cache
def _parts(template: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"( ?\{\w+\})", template) if part)


def spread(depth: float, count: int) -> list[float]:
    """``count`` depths from ``depth`` on, evenly towards the end."""
    return [depth + (1 - depth) * place / count for place in range(count)]
