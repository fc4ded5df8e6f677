"""The text that probes are hidden in: the user's documents as token ids, and where a line can be planted."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...errors import DatasetError
from ..windows import TokenArray
from .names import words
from .pieces import Encoder

# A line is planted where a clause or a line ends if that is as near as this share of the filler.
_NEAR = 1 / 16
_LEAST_NEAR = 16

Document = str | Sequence[int]


@dataclass(frozen=True)
class Volume:
    """Filler of one document, or of several short ones in a row; no two volumes share a document.

    Args:
        document: number of the first of its documents in what was given: the cluster of the standard error.
        ids: token ids ``[tokens]``.
        ends: positions before which a clause or a line ends, ascending.
    """

    document: int
    ids: TokenArray = field(repr=False)
    ends: TokenArray = field(repr=False)

    @cached_property
    def distinct_ids(self) -> list[int]:
        """The ids that it holds, ascending."""
        return [int(token) for token in np.unique(self.ids)]

    def start(self, tokens: int, draw: random.Random) -> int:
        """Where to begin a cut of ``tokens``: at random, so that it ends where a clause does if any can."""
        first = int(np.searchsorted(self.ends, tokens))
        if first < len(self.ends):
            return int(self.ends[draw.randrange(first, len(self.ends))]) - tokens
        return draw.randrange(len(self.ids) - tokens + 1)

    def near_end(self, start: int, tokens: int, position: int) -> int:
        """Where to plant in a cut of ``tokens``: at a clause's end near ``position``, or there."""
        target = start + position
        index = int(np.searchsorted(self.ends, target))
        ends = [end for end in self.ends[max(0, index - 1) : index + 1].tolist() if start <= end <= start + tokens]
        nearest = min(ends, key=lambda end: abs(end - target), default=target)
        return (nearest if abs(nearest - target) <= max(_LEAST_NEAR, _NEAR * tokens) else target) - start


@dataclass(frozen=True)
class Filler:
    """All volumes, and the words that they hold."""

    volumes: tuple[Volume, ...]
    words: frozenset[str] = field(repr=False)


def read_filler(documents: Iterable[Document], encoder: Encoder, tokens: int, most: int | None = None) -> Filler:
    """Documents as volumes of at least ``tokens`` ids, ``most`` of them at most.

    A document that is long enough is a volume. Shorter ones are joined; what is left at the end is not used.

    Args:
        documents: texts, or token ids without special ones; read no further than needed.
        encoder: makes token ids of texts, and texts of token ids.
        tokens: length of a window.
        most: volumes that can be used.

    Raises:
        DatasetError: not one volume.
    """
    volumes: list[Volume] = []
    vocabulary: set[str] = set()
    short: list[tuple[int, TokenArray]] = []
    for number, document in enumerate(documents):
        ids = np.asarray(encoder.text(document) if isinstance(document, str) else document, dtype=np.int32)
        vocabulary |= words(document if isinstance(document, str) else encoder.decode(ids))
        if len(ids) >= tokens:
            volumes.append(Volume(number, ids, encoder.ends(ids)))
        else:
            short.append((number, ids))
            ids = np.concatenate([piece for _, piece in short])
            if len(ids) >= tokens:
                volumes.append(Volume(short[0][0], ids, encoder.ends(ids)))
                short = []
        if len(volumes) == most:
            break
    if not volumes:
        raise DatasetError(
            f"the filler has {sum(len(ids) for _, ids in short)} tokens, a probe of {tokens} needs as many",
            hint="give more text, or shorter windows",
        )
    return Filler(tuple(volumes), frozenset(vocabulary))
