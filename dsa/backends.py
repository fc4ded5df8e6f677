"""Which code runs indexers and attention: transformers' own, or what needs less memory for long windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .chunked import ChunkedIndexers
from .chunks import ChunkBudget
from .feedforward import ChunkedFeedForward
from .sparse import SparseAttention
from .switch import find_indexers

INDEXERS = ("auto", "stock", "chunked")
ATTENTIONS = ("auto", "stock", "sparse")

# Score and attention chunks: on a CPU small enough for its caches to help, on a GPU large enough to fill it.
_ON_CPU = 64 << 20
_ON_GPU = 1 << 30


@dataclass(frozen=True)
class Backends:
    """What runs: ``indexer`` stock or chunked, ``attention`` stock or sparse."""

    indexer: str = "stock"
    attention: str = "stock"


def install(model: Any, backends: Backends, told: Callable[[str], None] = lambda line: None) -> Callable[[], None]:
    """Makes ``model`` run under ``backends``; to be done before a ``Switch`` is put on it.

    Args:
        model: a transformers DSA model of a family that the backends are written for.
        backends: what to run.
        told: called with a line for the user when memory forces smaller chunks.

    Returns:
        What gives the model its own code back.
    """
    budget = ChunkBudget(_ON_CPU, _ON_GPU, told)
    installed: list[ChunkedIndexers | SparseAttention | ChunkedFeedForward] = []
    stack_name, _ = find_indexers(model)
    if backends.indexer == "chunked":
        installed.append(ChunkedIndexers(model, budget))
    if backends.attention == "sparse":
        installed.append(SparseAttention(model, stack_name, budget, whole_mask=backends.indexer == "stock"))
        installed.append(ChunkedFeedForward(model, stack_name))

    def remove() -> None:
        for each in reversed(installed):
            each.remove()

    return remove
