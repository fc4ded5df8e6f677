"""Names and numbers that probes plant: made from a seed, and never the same in evaluation as in training."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Container

from ...errors import DatasetError

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_SYLLABLES = 3
# A name is drawn again where the filler has it; a filler that has so many in a row is no text.
_MOST_DRAWS = 1000


def words(text: str) -> set[str]:
    """The words and numbers of a text in lower case: what a planted name or number must not be among."""
    return set(re.findall(r"[a-z]+|[0-9]+", text.lower()))


class Vocabulary:
    """Draws names and numbers that neither the filler holds nor the other side uses.

    Those whose CRC-32 is even serve evaluation, the others training: a model trained on the one side has seen none
    of the other's. Names have three syllables (``Zomira``; 343,000 in all), numbers five digits.

    Args:
        filler: the words and numbers of the filler.
        training: which of the two sides to draw from.
        pool: draw from as many names, and as many numbers, only, so that their encodings can be remembered;
            None draws from all.
    """

    def __init__(self, filler: Container[str], *, training: bool = False, pool: int | None = None) -> None:
        self._filler = filler
        self._remainder = int(training)
        draw = random.Random(f"names/{training}/{pool}")
        self._names = [self._unused(_new_name, draw) for _ in range(pool or 0)]
        self._numbers = [self._unused(_new_number, draw) for _ in range(pool or 0)]

    def name(self, draw: random.Random) -> str:
        """A pronounceable name, capitalised."""
        return draw.choice(self._names) if self._names else self._unused(_new_name, draw)

    def number(self, draw: random.Random) -> str:
        """Five digits, the first of them no zero."""
        return draw.choice(self._numbers) if self._numbers else self._unused(_new_number, draw)

    def _unused(self, make: Callable[[random.Random], str], draw: random.Random) -> str:
        for _ in range(_MOST_DRAWS):
            word = make(draw)
            if zlib.crc32(word.encode()) % 2 == self._remainder and word.lower() not in self._filler:
                return word
        raise DatasetError(
            f"{_MOST_DRAWS} names or numbers in a row stand in the filler already, so that none can be planted",
            hint="give ordinary text as filler",
        )


def _new_name(draw: random.Random) -> str:
    return "".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(_SYLLABLES)).capitalize()


def _new_number(draw: random.Random) -> str:
    return str(draw.randrange(10_000, 100_000))
