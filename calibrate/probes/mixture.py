"""Makes an endless stream of training windows with probes in them, none of which evaluation ever uses."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .composition import EncodedScript, ProbeWindow, check_room, compose, encode, room
from .evaluation import KINDS, check_kinds
from .filler import Document, read_filler
from .kinds import SCRIPTS
from .names import Vocabulary
from .pieces import Encoder
from .scripts import LEAST, Cast, random_sizes

# Names and numbers to draw from: enough that none is learnt by heart, few enough to remember their encodings.
_POOL = 8192
_MOST_SCRIPTS = 4
_MOST_MISFITS = 3


def probe_mixture(
    tokenizer: Any, documents: Iterable[Document], length: int, seed: int = 0, kinds: Sequence[str] = KINDS
) -> Iterator[ProbeWindow]:
    """Windows of ``length`` tokens with one to four probes in each, without end.

    Kinds, depths, sizes and phrasing are random. Names and numbers are others than those of ``make_probes``. All
    questions stand at the window's end. At least a third of a window is filler.

    Args:
        tokenizer: one of transformers.
        documents: filler, as texts or as token ids without special ones; all are read and kept.
        length: tokens of a window.
        seed: decides everything.
        kinds: some of ``KINDS``.

    Raises:
        SettingError: no such kind.
        WindowError: the smallest probe of a kind does not fit a window; says the least length.
        DatasetError: less filler than one window.
    """
    check_kinds(kinds)
    encoder = Encoder(tokenizer)
    filler = read_filler(documents, encoder, length)
    stage = _Stage(encoder, Vocabulary(filler.words, training=True, pool=_POOL), tuple(kinds), length)
    stage.check(filler.volumes[0].distinct_ids)
    draw = random.Random(f"mixture/{seed}")

    def windows() -> Iterator[ProbeWindow]:
        while True:
            volume = draw.choice(filler.volumes)
            scripts = stage.scripts(Cast(draw, stage.vocabulary, volume.distinct_ids))
            yield compose(scripts, encoder.opening, volume, length, draw)

    return windows()


@dataclass(frozen=True)
class _Stage:
    """What all windows of a stream have in common."""

    encoder: Encoder
    vocabulary: Vocabulary
    kinds: tuple[str, ...]
    length: int

    def check(self, token_ids: Sequence[int]) -> None:
        """Refuses a length that the smallest script of a kind does not fit."""
        tokens = {}
        for kind in self.kinds:
            cast = Cast(random.Random(kind), self.vocabulary, token_ids)
            script = encode(SCRIPTS[kind](cast, 0.5, LEAST), self.encoder)
            tokens[kind] = len(self.encoder.opening) + script.tokens
        check_room(tokens, self.length)

    def scripts(self, cast: Cast) -> list[EncodedScript]:
        """Random scripts, as many as a random number says and as fit; smaller ones where large ones do not."""
        count = cast.draw.randint(1, _MOST_SCRIPTS)
        left = room(self.length) - len(self.encoder.opening)
        scripts: list[EncodedScript] = []
        share = 1.0
        misfits = 0
        # One of some kind fits always, as all were checked, but for a name that takes more tokens than another.
        while not scripts or (len(scripts) < count and misfits < _MOST_MISFITS):
            kind = cast.draw.choice(self.kinds)
            sizes = random_sizes(cast.draw, share)
            script = encode(SCRIPTS[kind](cast, cast.draw.random(), sizes), self.encoder)
            if script.tokens <= left:
                scripts.append(script)
                left -= script.tokens
            else:
                misfits += 1
                share = share / 2 if share > 1 / 16 else 0.0
        return scripts
