"""Runs the indexers of a loaded model in chunks of rows, on their own weights and code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .chunks import ChunkBudget
from .index_scores import DeferredKeys, Scorer
from .selection import mark_distinct
from .switch import find_indexers, restore

# Rows whose projections are made together; queries take heads x dim values each.
_ROWS = 4096


class ChunkedIndexers:
    """Overrides ``forward`` on each indexer instance of ``model``; to be done before a ``Switch`` is.

    An indexer's own forward is called on some rows at a time and is handed ``DeferredKeys``, so that
    it computes what it always does, but the scores in chunks. Peak memory is the budget, where the
    stock forward takes ``2 x [tokens, heads, tokens]`` fp32 values. With a live cache the stock forward runs.

    Args:
        model: a transformers DSA model of a family whose selections are token indices.
        budget: memory for a chunk of scores.
    """

    def __init__(self, model: nn.Module, budget: ChunkBudget) -> None:
        self._budget = budget
        _, indexers = find_indexers(model)
        self._overridden = [(each, each.__dict__.get("forward")) for each in indexers.values()]
        for module in indexers.values():
            # Offloaded weights are fetched for each call, so that all rows' projections are made in one.
            fetched = any(weight.is_meta for weight in module.parameters())
            module.forward = self._forward(module.forward, 1 << 30 if fetched else _ROWS)

    def remove(self) -> None:
        """Gives the indexers their own forwards back."""
        for module, own in self._overridden:
            restore(module, "forward", own)

    def _forward(self, own_forward: Callable[..., Any], rows: int) -> Callable[..., Any]:
        signature = inspect.signature(own_forward)

        @torch.no_grad()
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            if given.get("past_key_values") is not None:
                return own_forward(*args, **kwargs)
            return self._in_chunks(own_forward, given, rows)

        return forward

    def _in_chunks(self, own_forward: Callable[..., Any], given: dict[str, Any], most: int) -> torch.Tensor:
        tokens = given["hidden_states"].shape[1]
        keys = _KeysSoFar(tokens, self._budget)
        first, *rest = [slice(start, min(start + most, tokens)) for start in range(0, tokens, most)]
        selection: torch.Tensor = own_forward(**_rows_of(given, first) | {"past_key_values": keys})
        if rest:
            whole = selection.new_empty(selection.shape[0], tokens, selection.shape[2])
            whole[:, first] = selection
            selection = whole
        for rows in rest:
            keys.first = rows.start
            selection[:, rows] = own_forward(**_rows_of(given, rows) | {"past_key_values": keys})
        return mark_distinct(selection)


class _KeysSoFar:
    """Stands in for the cache inside an indexer's forward: collects keys, hands out ``DeferredKeys``."""

    def __init__(self, total: int, budget: ChunkBudget) -> None:
        self.first = 0
        self._total = total
        self._budget = budget
        self._keys: torch.Tensor | None = None

    def update_indexer(self, keys: torch.Tensor, layer: int) -> DeferredKeys:
        if self._keys is None:
            self._keys = keys.new_empty(keys.shape[0], self._total, keys.shape[2])
        end = self.first + keys.shape[1]
        self._keys[:, self.first : end] = keys
        return DeferredKeys(Scorer(self._keys[:, :end], self.first, self._total, self._budget))


def _rows_of(given: dict[str, Any], rows: slice) -> dict[str, Any]:
    """An indexer's arguments for the queries of ``rows``, which see no key after themselves."""
    part = dict(given)
    for name in ("hidden_states", "q_resid", "position_ids"):
        if part.get(name) is not None:
            part[name] = part[name][:, rows]
    part["position_embeddings"] = tuple(each[:, rows] for each in given["position_embeddings"])
    mask = given["attention_mask"]
    compact = mask.shape[1] == 1  # the same for all queries, see ``compact_mask``
    part["attention_mask"] = mask[:, :, : rows.stop] if compact else mask[:, rows, : rows.stop]
    return part
