"""Makes the probes that models are evaluated on: kinds and depths balanced, the same for the same seed."""

from __future__ import annotations

import hashlib
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

    A kind's probes are the same whatever other kinds are asked for.

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
    filler = read_filler(documents, encoder, length, most=count_per_kind)
    vocabulary = Vocabulary(filler.words)
    probes = []
    for kind in kinds:
        order = list(range(len(filler.volumes)))
        random.Random(f"probes/{seed}/{kind}").shuffle(order)
        drafts = []
        for number in range(count_per_kind):
            draw = random.Random(f"probes/{seed}/{kind}/{number}")
            volume = filler.volumes[order[number % len(order)]]
            depth = depths[number % len(depths)]
            script = SCRIPTS[kind](Cast(draw, vocabulary, volume.distinct_ids), depth, Sizes())
            drafts.append(_Draft(draw, volume, depth, encode(script, encoder)))
        opening = encoder.opening
        # All at once, so that the least length that is told does for all of them.
        tokens = len(opening) + max((draft.script.tokens for draft in drafts), default=0)
        check_room(tokens, length, kind)
        for draft in drafts:
            window = compose([draft.script], opening, draft.volume, length, draft.draw)
            document = draft.volume.document
            probes.append(Probe(kind, draft.depth, length, window.token_ids, window.answers, document))
    return probes


def fingerprint(probes: Iterable[Probe]) -> str:
    """SHA-256 over all that the probes are, in their order."""
    digest = hashlib.sha256()
    for probe in probes:
        fields = (probe.kind, probe.depth, probe.length, probe.token_ids, probe.answers, probe.document)
        digest.update(repr(fields).encode())
    return digest.hexdigest()


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuses a kind that does not exist.

    Raises:
        SettingError: names it and lists all.
    """
    if unknown := [kind for kind in kinds if kind not in SCRIPTS]:
        raise SettingError(f"there are no probes of kind {unknown[0]!r}", hint=f"kinds are {', '.join(KINDS)}")
