"""Training batches of text and probes mixed, the probes made by all processors at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexcache.calibrate.probes import KINDS, Probe, make_probes, probe_mixture
from indexcache.recipes.tiny.text import orders, shuffled_starts, windows_at

FILLER_CHARACTERS = 4_000_000  # of the text that one process hides probes in
MOST_WORKERS = 16
# A copy has many answers and is learnt first: in equal parts it would drown the other kinds.
TRAINED_KINDS = tuple(kind for kind in KINDS for _ in range(1 if kind == "copy" else 3))

Windows = tuple[NDArray[np.uint16], NDArray[np.bool_]]


def probe_windows(
    tokenizer: Any, documents: Sequence[str], length: int, seed: int, kinds: Sequence[str], count: int
) -> Windows:
    """Windows with probes: ids [count, length + 1], and which of their labels are answers [count, length]."""
    ids = np.zeros((count, length + 1), np.uint16)
    answers = np.zeros((count, length), bool)
    mixture = probe_mixture(tokenizer, documents, length + 1, seed, kinds)
    for row, window in enumerate(islice(mixture, count)):
        ids[row] = window.token_ids
        answers[row, list(window.answers)] = True
    return ids, answers


class ProbeMill:
    """Processes that make windows with probes while this one does other things; begun before any GPU is used."""

    def __init__(
        self,
        tokenizer: Any,
        documents: Sequence[str],
        lengths: Sequence[int],
        size: int,
        seed: int,
        kinds: Sequence[str],
    ) -> None:
        workers = min(MOST_WORKERS, os.cpu_count() or 1)
        self._pool: Pool = multiprocessing.get_context("fork").Pool(workers)
        self._parts: dict[int, list[AsyncResult[Windows]]] = {}
        for length in lengths:
            # Windows of all lengths together hold equally many tokens.
            count = max(1, round(size * max(lengths) / length / workers))
            self._parts[length] = []
            for worker in range(workers):
                filler = filler_of(documents[worker::workers])
                task = (tokenizer, filler, length, seed * workers + worker, kinds, count)
                self._parts[length].append(self._pool.apply_async(probe_windows, task))

    def windows(self, device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
        """All windows by length: ids [N, length + 1], in 32 bits, and answers [N, length]."""
        made = {}
        for length, parts in self._parts.items():
            ids, answers = zip(*(part.get() for part in parts), strict=True)
            tokens = torch.from_numpy(np.concatenate(ids).astype(np.int32))
            made[length] = (tokens.to(device), torch.from_numpy(np.concatenate(answers)).to(device))
        self._pool.close()
        return made


def filler_of(documents: Sequence[str]) -> list[str]:
    """As much of some documents as one process needs, a like piece of each."""
    most = FILLER_CHARACTERS // max(1, len(documents))
    return [document[:most] for document in documents]


def held_out_probes(tokenizer: Any, documents: Sequence[str], length: int, count: int) -> list[Probe]:
    """``count`` probes of each kind, ``length`` tokens long, in held-out text."""
    return make_probes(tokenizer, documents, length, count) if count else []


class Draws:
    """Numbers taken from pass after pass; on the device, so that no step waits for a copy."""

    def __init__(self, passes: Iterator[Tensor], device: torch.device) -> None:
        self._passes, self._device = passes, device
        self._rest = torch.empty(0, dtype=torch.long, device=device)

    def take(self, count: int) -> Tensor:
        """The next ``count`` numbers [count]."""
        while len(self._rest) < count:
            self._rest = torch.cat([self._rest, next(self._passes).to(self._device)])
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


@dataclass
class Batches:
    """Windows for training: a share of them with probes, the rest plain text.

    Args:
        tokens: the text as one stream of ids [N].
        probes: by length, ids [N, length + 1] and answers [N, length]; empty where none are mixed in.
        share: of a batch's windows, those with probes.
        tokens_a_batch: whatever the windows' length.
        seed: decides the order.
    """

    tokens: Tensor
    probes: dict[int, tuple[Tensor, Tensor]]
    share: float
    tokens_a_batch: int
    seed: int

    def __post_init__(self) -> None:
        generator, device = torch.Generator().manual_seed(self.seed), self.tokens.device
        passes = {length: orders(len(ids), generator) for length, (ids, _) in self.probes.items()}
        self._probes = {length: Draws(some, device) for length, some in passes.items()}
        self._starts: dict[int, Draws] = {}
        self._generator = generator

    def draw(self, length: int) -> tuple[Tensor, Tensor]:
        """Windows [B, length + 1] and which of their labels are a probe's answers [B, length]."""
        batch = max(1, self.tokens_a_batch // length)
        probes = round(self.share * batch) if length in self.probes else 0
        if length not in self._starts:
            passes = shuffled_starts(len(self.tokens), length, self._generator)
            self._starts[length] = Draws(passes, self.tokens.device)
        text = windows_at(self.tokens, self._starts[length].take(batch - probes), length)
        answers = torch.zeros(batch - probes, length, dtype=torch.bool, device=text.device)
        if not probes:
            return text, answers
        ids, marks = self.probes[length]
        chosen = self._probes[length].take(probes)
        return torch.cat([text, ids[chosen].long()]), torch.cat([answers, marks[chosen]])
