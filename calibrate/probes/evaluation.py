"""Makes the probes that models are evaluated on: kinds and depths balanced, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import SettingError
from .composition import EncodedScript, check_room, compose, encode
from .filler import Document, Volume, read_filler
from .kinds import SCRIPTS
from .names import Vocabulary
from .pieces import Encoder
from .scripts import Cast, Sizes

KINDS: tuple[str, ...] = tuple(SCRIPTS)
DEPTHS: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Probe:
    """A window whose answer stands in it, and which of its labels are scored.

    Args:
        kind: one of ``KINDS``.
        depth: fraction of the filler before the earliest fact that the answer needs.
        length: tokens of the window.
        token_ids: the window; it ends with the answer.
        answers: labels to score, ascending. Label ``i`` is token ``i + 1``, which position ``i`` predicts.
        document: number of the filler's (first) document: the cluster of the standard error.
    """

    kind: str
    depth: float
    length: int
    token_ids: tuple[int, ...]
    answers: tuple[int, ...]
    document: int


@dataclass(frozen=True)
class _Draft:
    """A probe before its window is put together."""

    draw: random.Random
    volume: Volume
    depth: float
    script: EncodedScript


def make_probes(
    tokenizer: Any,
    documents: Iterable[Document],
    length: int,
    count_per_kind: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    depths: Sequence[float] = DEPTHS,
) -> list[Probe]:
    """Probes of each kind, ``count_per_kind`` each, over ``depths`` in turn.

    All kinds together go through the documents, so that they have one each as far as there are enough. Which ones
    a kind has depends on its place in ``KINDS``: its probes are the same whatever other kinds are asked for.

    Args:
        tokenizer: one of transformers.
        documents: filler, as texts or as token ids without special ones.
        length: tokens of a probe.
        count_per_kind: probes of a kind.
        seed: decides names, numbers, phrasing and which filler.
        kinds: some of ``KINDS``.
        depths: fractions of the filler, from 0 to 1.

    Raises:
        SettingError: no such kind or depth.
        WindowError: less than a third of a probe would be filler; says the least length.
        DatasetError: less filler than one window.
    """
    check_kinds(kinds)
    if not all(0 <= depth <= 1 for depth in depths) or not depths:
        raise SettingError("a probe's depth is a fraction of the filler, from 0 to 1", hint=f"such as {DEPTHS}")
    encoder = Encoder(tokenizer)
    filler = read_filler(documents, encoder, length, most=count_per_kind * len(KINDS))
    writer = _Writer(encoder, Vocabulary(filler.words), _order(filler.volumes, seed), seed)
    drafts = {kind: writer.drafts(kind, count_per_kind, depths) for kind in kinds if count_per_kind}
    if drafts:
        # All at once, so that the least length that is told does for all of them.
        tokens = {kind: max(draft.script.tokens for draft in made) for kind, made in drafts.items()}
        check_room({kind: len(encoder.opening) + count for kind, count in tokens.items()}, length)
    probes = []
    for kind, draft in ((kind, draft) for kind, made in drafts.items() for draft in made):
        window = compose([draft.script], encoder.opening, draft.volume, length, draft.draw)
        probes.append(Probe(kind, draft.depth, length, window.token_ids, window.answers, draft.volume.document))
    return probes


@dataclass(frozen=True)
class _Writer:
    """What all probes of a set have in common; ``volumes`` are in the order in which kinds go through them."""

    encoder: Encoder
    vocabulary: Vocabulary
    volumes: tuple[Volume, ...]
    seed: int

    def drafts(self, kind: str, count: int, depths: Sequence[float]) -> list[_Draft]:
        """``count`` probes of a kind, before their windows are put together."""
        drafts = []
        for number in range(count):
            draw = random.Random(f"probes/{self.seed}/{kind}/{number}")
            volume = self._volume(KINDS.index(kind) * count + number)
            depth = depths[number % len(depths)]
            script = SCRIPTS[kind](Cast(draw, self.vocabulary, volume.distinct_ids), depth, Sizes())
            drafts.append(_Draft(draw, volume, depth, encode(script, self.encoder)))
        return drafts

    def _volume(self, place: int) -> Volume:
        """The volume of the probe at ``place`` among those of all kinds.

        Each round through the volumes begins one further on, or their depths would be the same in every round.
        """
        rounds, count = place // len(self.volumes), len(self.volumes)
        return self.volumes[(place + rounds) % count]


def _order(volumes: Sequence[Volume], seed: int) -> tuple[Volume, ...]:
    """The volumes in random order."""
    order = list(volumes)
    random.Random(f"probes/{seed}/documents").shuffle(order)
    return tuple(order)


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuses a kind that does not exist.

    Raises:
        SettingError: names it and lists all.
    """
    if unknown := [kind for kind in kinds if kind not in SCRIPTS]:
        raise SettingError(f"there are no probes of kind {unknown[0]!r}", hint=f"kinds are {', '.join(KINDS)}")
