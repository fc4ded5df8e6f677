"""Puts scripts and filler together into a window of exactly the length asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import WindowError
from .filler import Volume
from .pieces import Encoder
from .scripts import Piece, Script

_LINE_END = Piece("\n")


@dataclass(frozen=True)
class ProbeWindow:
    """A window with answers in it.

    Args:
        token_ids: the window; it ends with an answer.
        answers: its labels that are answers, ascending. A window's n tokens have n - 1 labels: label ``i`` is
            token ``i + 1``, which position ``i`` predicts.
    """

    token_ids: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class EncodedScript:
    """A script as token ids.

    Args:
        lines: depth and ids of each fact.
        question: ids of what stands at the end.
        answers: positions in ``question`` that are an answer's.
    """

    lines: tuple[tuple[float, tuple[int, ...]], ...]
    question: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens it takes."""
        return sum(len(ids) for _, ids in self.lines) + len(self.question)


def encode(script: Script, encoder: Encoder) -> EncodedScript:
    """The token ids of a script, a piece at a time; a fact stands on a line by itself."""
    lines = []
    for fact in script.facts:
        pieces = [_LINE_END, *fact.pieces, _LINE_END]
        lines.append((fact.depth, tuple(token for piece in pieces for token in _ids(piece, encoder))))
    question: list[int] = []
    answers: list[int] = []
    for piece in script.question:
        ids = _ids(piece, encoder)
        if piece.answers:
            # Tokenizers that part numbers from their space give that away: what follows "is" is a space always.
            blank = isinstance(piece.content, str) and encoder.is_blank(ids[0])
            answers += range(len(question) + blank, len(question) + len(ids))
        question += ids
    return EncodedScript(tuple(lines), tuple(question), tuple(answers))


def compose(
    scripts: Sequence[EncodedScript], opening: tuple[int, ...], volume: Volume, length: int, draw: random.Random
) -> ProbeWindow:
    """The window of ``length`` tokens: what opens a text, filler with the facts in it, the questions in turn."""
    tokens = length - len(opening) - sum(script.tokens for script in scripts)
    start = volume.start(tokens, draw)
    filler = volume.ids[start : start + tokens].tolist()
    ids = list(opening)
    place = 0
    for depth, line in sorted((line for script in scripts for line in script.lines), key=lambda line: line[0]):
        stop = max(place, volume.near_end(start, tokens, round(depth * tokens)))
        ids += filler[place:stop]
        ids += line
        place = stop
    ids += filler[place:]
    answers: list[int] = []
    for script in scripts:
        answers += (len(ids) + position - 1 for position in script.answers)
        ids += script.question
    return ProbeWindow(tuple(ids), tuple(answers))


def room(length: int) -> int:
    """How many tokens of a window need not be filler: two of three."""
    return 2 * length // 3


def check_room(tokens: Mapping[str, int], length: int) -> None:
    """Refuses a window in which probes, of so many ``tokens`` by kind, would leave too little filler.

    Raises:
        WindowError: says the least length that does for all kinds.
    """
    kind = max(tokens, key=lambda name: tokens[name])
    most = tokens[kind]
    if most > room(length):
        raise WindowError(
            f"windows of {length} tokens are too short for {kind} probes: up to {most} tokens are planted and "
            "asked, and half as many must be filler",
            hint=f"give --window {-(-3 * most // 2)} or more",
        )


def _ids(piece: Piece, encoder: Encoder) -> tuple[int, ...]:
    return encoder.piece(piece.content) if isinstance(piece.content, str) else piece.content
