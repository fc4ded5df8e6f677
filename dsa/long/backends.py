"""Which code runs indexers and attention: transformers' own, or what needs less memory for long windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import SettingError
from ..checkpoint.sites import find_indexers
from ..chunks import ChunkBudget
from .attention import SparseAttention
from .feedforward import ChunkedFeedForward
from .indexers import ChunkedIndexers

# Tokens from which on attention runs over the selected keys. On a GPU it is faster from there; on a CPU it takes
# about as long as the stock one, without its masks.
_SPARSE_FROM = {"cpu": 8192, "cuda": 4096}

# Score and attention chunks: on a CPU small enough for its caches to help, on a GPU large enough to fill it.
CHUNK_ON_CPU = 64 << 20
CHUNK_ON_GPU = 1 << 30


@dataclass(frozen=True)
class Backends:
    """What runs: ``indexer`` stock or chunked, ``attention`` stock or sparse."""

    indexer: str = "stock"
    attention: str = "stock"


def choose(request: Backends, token_indices: bool, tokens: int, device_kind: str) -> Backends:
    """What is to run; ``auto`` is decided by the family, the window's length and the device.

    Args:
        request: what the user asked for, ``auto`` included.
        token_indices: whether the family's indexers select tokens, one set for all heads.
        tokens: per window.
        device_kind: e.g. "cpu" or "cuda".

    Raises:
        SettingError: a backend asked for by name that is not written for the family.
    """
    if not token_indices and {"chunked", "sparse"} & {request.indexer, request.attention}:
        raise SettingError(
            "chunked indexers and sparse attention are written for families that select single tokens",
            hint="leave --indexer and --attention out for this family",
        )
    long = tokens >= _SPARSE_FROM.get(device_kind, _SPARSE_FROM["cuda"])
    return Backends(
        ("chunked" if token_indices else "stock") if request.indexer == "auto" else request.indexer,
        ("sparse" if token_indices and long else "stock") if request.attention == "auto" else request.attention,
    )


def install(
    model: Any, backends: Backends, on_shortage: Callable[[str], None] = lambda line: None, rows: int | None = None
) -> Callable[[], None]:
    """Makes ``model`` run under ``backends``; to be done before a ``Switch`` is put on it.

    Args:
        model: a transformers DSA model of a family that the backends are written for.
        backends: what to run.
        on_shortage: called with a line for the user when memory forces smaller chunks.
        rows: of queries that an indexer projects at a time; as many as are good by default.

    Returns:
        What gives the model its own code back.
    """
    budget = ChunkBudget(CHUNK_ON_CPU, CHUNK_ON_GPU, on_shortage)
    installed: list[ChunkedIndexers | SparseAttention | ChunkedFeedForward] = []
    stack_name, _ = find_indexers(model)
    if backends.indexer == "chunked":
        installed.append(ChunkedIndexers(model, budget, rows))
    if backends.attention == "sparse":
        installed.append(SparseAttention(model, stack_name, budget, whole_mask=backends.indexer == "stock"))
        installed.append(ChunkedFeedForward(model, stack_name))

    def remove() -> None:
        for override in reversed(installed):
            override.remove()

    return remove
