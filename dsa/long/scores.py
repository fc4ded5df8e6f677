"""Scores of a lightning indexer and its choice among them, never held for more than a chunk of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch.nn import functional

from ..chunks import ChunkBudget
from . import kernels
from .masks import Visibility


class Chooser(Protocol):
    """What is done with the scores that an indexer's own forward describes."""

    @property
    def total(self) -> int:
        """Keys of the whole sequence, which bounds how many are selected."""

    def choose(self, queries: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        """The selection ``[batch, queries, width]`` int32 by ``sum_h weights_h relu(queries_h . keys)``.

        Args:
            queries: ``[batch, queries, heads, dim]``.
            weights: ``[batch, queries, heads]``, scales included.
            mask: ``[batch, queries, keys]`` or compact, for ``Visibility``.
            width: how many keys are selected.
        """


@dataclass(frozen=True)
class Scorer:
    """How the scores of one call are made and chosen from.

    Args:
        keys: the indexer's keys, ``[batch, keys, dim]``.
        first: place in the sequence of the call's first query.
        total: keys of the whole sequence, which bounds how many are selected.
        budget: memory for a chunk.
    """

    keys: torch.Tensor
    first: int
    total: int
    budget: ChunkBudget

    def choose(self, queries: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        """See ``Chooser``: in chunks of rows."""
        visible = Visibility(mask, self.first)
        chosen = queries.new_empty((*queries.shape[:2], width), dtype=torch.int32)
        for batch in range(len(chosen)):
            select_tokens(
                queries[batch], self.keys[batch], weights[batch],
                visible, batch, self.first, chosen[batch], self.budget,
            )  # fmt: skip
        return chosen


class DeferredKeys:
    """Stands in for the keys inside an indexer's own forward, which then only describes its scores.

    Transformers' indexers compute ``topk(sum_h w_h relu(q_h . k))`` over whole sequences, which takes
    ``[tokens, heads, tokens]`` values. Given this instead of the keys, the same code calls the few
    operations below, and the last of them leaves the choice to a ``Chooser``. The projections, rotary
    embeddings and scales are the model's own in every family; an operation not foreseen here raises.
    """

    def __init__(self, scorer: Chooser) -> None:
        self._scorer = scorer

    def transpose(self, *dims: int) -> DeferredKeys:
        """Keys are transposed for the product; it is taken care of there."""
        return self._foreseen(dims == (-1, -2))

    def unsqueeze(self, dim: int) -> DeferredKeys:
        """A dimension for heads, which all share the keys."""
        return self._foreseen(dim == 1)

    def float(self) -> DeferredKeys:
        """Scores are accumulated in fp32 anyway."""
        return self

    def _foreseen(self, foreseen: bool) -> DeferredKeys:
        if not foreseen:
            raise TypeError("the indexer arranges its keys in a way that is not foreseen")
        return self

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> _HeadScores:
        if function is not torch.matmul or not isinstance(args[1], DeferredKeys):
            raise TypeError(f"the indexer calls {function.__name__} on its keys, which is not foreseen")
        return _HeadScores(args[0], args[1]._scorer)


@dataclass(frozen=True)
class _HeadScores:
    """``scale * queries . keys`` per head, ``[batch, queries, heads, keys]``, not computed."""

    queries: torch.Tensor
    scorer: Chooser
    scale: float = 1.0
    rectified: bool = False

    def __mul__(self, factor: float) -> _HeadScores:
        return replace(self, scale=self.scale * factor)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> _HeadScores | _IndexScores:
        if function is functional.relu:
            scores: _HeadScores = args[0]
            return replace(scores, rectified=True)
        if function is torch.matmul and isinstance(args[1], _HeadScores) and args[1].rectified:
            # Transformers writes weights [batch, queries, 1, heads] x scores [batch, queries, heads, keys].
            scores = args[1]
            if scores.scale <= 0:
                raise TypeError("the indexer's scale is not positive, which is not foreseen")
            # [batch, queries, heads]; relu(c x) = c relu(x) for a positive scale c.
            weights = args[0].squeeze(-2) * scores.scale
            return _IndexScores(scores.queries, weights, scores.scorer)
        raise TypeError(f"the indexer calls {function.__name__} on its scores, which is not foreseen")


@dataclass(frozen=True)
class _IndexScores:
    """``sum_h weights_h relu(queries_h . keys)``, ``[batch, queries, keys]``, not computed."""

    queries: torch.Tensor
    weights: torch.Tensor
    scorer: Chooser
    mask: torch.Tensor | None = None

    def squeeze(self, dim: int) -> _IndexScores:
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.queries.shape[:2], self.scorer.total)

    def masked_fill(self, hidden: torch.Tensor, value: float) -> _IndexScores:
        return replace(self, mask=~hidden)

    def __add__(self, mask: torch.Tensor) -> _IndexScores:
        return replace(self, mask=mask)

    def topk(self, width: int, dim: int) -> SimpleNamespace:
        if self.mask is None:
            raise TypeError("the indexer selects among scores that it has not masked")
        return SimpleNamespace(indices=self.scorer.choose(self.queries, self.weights, self.mask, width))


def select_tokens(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor,
    visible: Visibility,
    batch: int,
    first: int,
    chosen: torch.Tensor,
    budget: ChunkBudget,
) -> None:
    """The keys with the highest ``sum_h weights_h relu(queries_h . keys)`` of those that a query sees.

    A query that sees no more keys than it selects gets the first ones, invisible ones among them, as
    transformers' indexers fill up with invisible ones too. Selections are distinct. On a GPU the kernels
    ``fused_index_scores`` and ``select_top`` do what ``index_scores``, the mask and ``topk`` do elsewhere.

    Args:
        queries: ``[queries, heads, dim]``.
        keys: ``[keys, dim]``, all up to the last query's place.
        weights: ``[queries, heads]`` fp32, scales included.
        visible: what the queries see.
        batch: which sequence of ``visible``.
        first: place of the first query.
        chosen: ``[queries, width]`` int32, written.
        budget: memory for a chunk.
    """
    width = chosen.shape[1]
    # The query at place t sees t + 1 keys, so that those at places below ``width`` have nothing to choose.
    blind = min(len(queries), max(0, width - first))
    chosen[:blind] = torch.arange(width, dtype=torch.int32, device=chosen.device)
    if blind == len(queries):
        return
    fused = kernels.usable(keys, (keys.shape[1],), 256) and visible.causal
    # fp32 scores of one query: summed over heads; without the kernel a row for each head beside them.
    row_bytes = len(keys) * 4 * (1 if fused else queries.shape[1] + 1)

    def work(start: int, end: int) -> None:
        start, end = blind + start, blind + end
        rows = (queries[start:end], keys[: first + end], weights[start:end])
        if fused:
            from .kernels.scores import fused_index_scores
            from .kernels.top import select_top

            scores = fused_index_scores(*rows, first + start)
            chosen[start:end] = select_top(scores, first + start, width)
            return
        scores = index_scores(*rows)
        # Where padding leaves a query fewer keys than it selects, hidden ones fill up, as in transformers.
        scores.masked_fill_(~visible.block(batch, (start, end), (0, first + end)), -torch.inf)
        # Attention sums over what is selected, so that its order does not matter.
        chosen[start:end] = scores.topk(width, dim=-1, sorted=False).indices

    budget.run(len(queries) - blind, row_bytes, keys.device, work)


def index_scores(queries: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``sum_h weights_h relu(queries_h . keys)`` in fp32: ``[queries, keys]``; unmasked.

    The reference of the kernel ``fused_index_scores``.

    Args:
        queries: ``[queries, heads, dim]``.
        keys: ``[keys, dim]``.
        weights: ``[queries, heads]``.
    """
    count, heads, _ = queries.shape
    # [queries * heads, keys] in fp32, the largest value of all: ``select_tokens`` counts it in ``row_bytes``.
    per_head = queries.float().flatten(0, 1) @ keys.float().T
    # [queries, 1, heads] x [queries, heads, keys]: one product a query weighs its heads and sums over them.
    return torch.bmm(weights.float().unsqueeze(1), per_head.relu_().view(count, heads, len(keys))).squeeze(1)


def mark_distinct(selection: torch.Tensor) -> torch.Tensor:
    """Notes on ``selection`` that its rows repeat nothing, and that one which sees few keys begins with these.

    The note goes with the tensor through the switch and the model's own code; a copy lacks it.
    """
    noted: Any = selection
    noted.is_distinct = True
    return selection


def is_distinct(selection: torch.Tensor) -> bool:
    """Whether ``mark_distinct`` was called on this very tensor."""
    return getattr(selection, "is_distinct", False)


def without_repeats(selection: torch.Tensor) -> torch.Tensor:
    """``[rows, width]`` with each row ascending and -1 in place of a key named again."""
    ascending = selection.sort(dim=-1).values
    # Equal neighbours are one key named again; the first of them stays.
    repeated = ascending[:, 1:] == ascending[:, :-1]
    ascending[:, 1:].masked_fill_(repeated, -1)
    return ascending
