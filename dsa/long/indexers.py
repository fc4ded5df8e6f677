"""Runs the indexers of a loaded model in chunks of rows, on their own weights and code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ..caches import CacheArgument
from ..checkpoint.sites import find_indexers
from ..chunks import ChunkBudget
from ..overrides import Overrides
from .masks import whole_mask
from .scores import DeferredKeys, Scorer, mark_distinct

# Rows whose projections are made together; queries take heads x dim values each.
ROWS = 4096
# Arguments of an indexer's forward. These three have a row for each query.
BY_ROW = ("hidden_states", "q_resid", "position_ids")
_KNOWN = frozenset((*BY_ROW, "position_embeddings", "attention_mask"))
_NEEDED = ("hidden_states", "position_embeddings", "attention_mask")


class ChunkedIndexers:
    """Overrides ``forward`` on each indexer instance of ``model``; to be done before a ``Switch`` is.

    An indexer's own forward is called on some rows at a time and is handed ``DeferredKeys``, so that
    it computes what it always does, but the scores in chunks. Peak memory is the budget, where the
    stock forward takes ``2 x [tokens, heads, tokens]`` fp32 values. With a live cache the stock forward runs.

    Args:
        model: a transformers DSA model of a family whose selections are token indices.
        budget: memory for a chunk of scores.
        rows: at a time; decided here by default.

    Raises:
        ModelError: an indexer's forward takes other arguments than are known here.
    """

    def __init__(self, model: nn.Module, budget: ChunkBudget, rows: int | None = None) -> None:
        self._budget = budget
        _, indexers = find_indexers(model)
        for module in indexers.values():
            indexer_call(module.forward)  # refused before anything is overridden
        self._overrides = Overrides()
        for module in indexers.values():
            # Offloaded weights are fetched for each call, so that all rows' projections are made in one.
            fetched = any(weight.is_meta for weight in module.parameters())
            chunk_rows = rows or (1 << 30 if fetched else ROWS)
            self._overrides.replace(module, "forward", partial(self._forward, chunk_rows))

    def remove(self) -> None:
        """Gives the indexers their own forwards back."""
        self._overrides.undo()

    def _forward(self, rows: int, stock_forward: Callable[..., Any]) -> Callable[..., Any]:
        call = indexer_call(stock_forward)

        @torch.no_grad()
        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = call.bound(args, kwargs)
            if arguments.get(str(call.name)) is not None:  # a live cache
                mask = whole_mask(arguments["attention_mask"], arguments["hidden_states"].shape[1])
                return stock_forward(**arguments | {"attention_mask": mask})
            _refuse_unknown([name for name in arguments.keys() - _KNOWN if arguments[name] is not None])
            return self._in_chunks(stock_forward, arguments, rows, str(call.name))

        return forward

    def _in_chunks(
        self, stock_forward: Callable[..., Any], arguments: dict[str, Any], chunk_rows: int, cache: str
    ) -> torch.Tensor:
        """The selection ``[batch, tokens, width]``, by ``chunk_rows`` queries at a time.

        Args:
            stock_forward: the indexer's.
            arguments: of the call, by name.
            chunk_rows: of queries.
            cache: the name of the argument in which the forward takes its cache.
        """
        tokens = arguments["hidden_states"].shape[1]
        # A chunk of queries sees the keys of all chunks before it too: they are collected over the chunks.
        keys = _KeyCollector(tokens, self._budget)
        selection: torch.Tensor | None = None
        for start in range(0, tokens, chunk_rows):
            rows = slice(start, min(start + chunk_rows, tokens))
            keys.first = rows.start
            chosen = stock_forward(**_arguments_of_rows(arguments, rows) | {cache: keys})
            keys.check_collected(rows.stop)
            # A single chunk is the whole selection: no copy of it is made.
            if rows.stop - rows.start == tokens:
                selection = chosen
                break
            if selection is None:
                selection = chosen.new_empty(chosen.shape[0], tokens, chosen.shape[2])
            selection[:, rows] = chosen
        assert selection is not None, "a sequence has tokens"
        return mark_distinct(selection)


def indexer_call(stock_forward: Callable[..., Any]) -> CacheArgument:
    """An indexer's signature, where it is one that can be called in chunks.

    Raises:
        ModelError: it is not.
    """
    call = CacheArgument(stock_forward, "an indexer")
    needed = [
        name for name, parameter in call.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]  # fmt: skip
    _refuse_unknown(set(needed) - _KNOWN - {call.name} | set(_NEEDED) - set(call.parameters))
    return call


def _refuse_unknown(names: Iterable[str]) -> None:
    if names := sorted(names):
        raise ModelError(
            f"an indexer is called with other arguments than chunks of rows are made of: {', '.join(names)}",
            hint="--indexer stock runs it as it is, in more memory",
        )


class _KeyCollector:
    """Stands in for the cache inside an indexer's forward: collects keys, hands out ``DeferredKeys``."""

    def __init__(self, total: int, budget: ChunkBudget) -> None:
        self.first = 0
        self._total = total
        self._budget = budget
        self._keys: torch.Tensor | None = None
        self._collected = 0

    def update_indexer(self, keys: torch.Tensor, layer: int) -> DeferredKeys:
        if self._keys is None:
            self._keys = keys.new_empty(keys.shape[0], self._total, keys.shape[2])
        end = self.first + keys.shape[1]
        self._keys[:, self.first : end] = keys
        self._collected = end
        return DeferredKeys(Scorer(self._keys[:, :end], self.first, self._total, self._budget))

    def check_collected(self, end: int) -> None:
        """Raises ``ModelError`` unless the forward that was to bring the keys up to ``end`` did."""
        if self._collected != end:
            raise ModelError(
                "an indexer does not go through the cache that it is given, so that it cannot run in chunks",
                hint="--indexer stock runs it as it is, in more memory",
            )


def _arguments_of_rows(arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    """An indexer's arguments for the queries of ``rows``, which see no key after themselves."""
    part = dict(arguments)
    for name in BY_ROW:
        if part.get(name) is not None:
            part[name] = part[name][:, rows]
    part["position_embeddings"] = tuple(table[:, rows] for table in arguments["position_embeddings"])
    mask = arguments["attention_mask"]
    compact = mask.shape[1] == 1  # the same for all queries, see ``compact_mask``
    part["attention_mask"] = mask[:, :, : rows.stop] if compact else mask[:, rows, : rows.stop]
    return part
