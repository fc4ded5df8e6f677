"""Attention over the selected tokens only, on the latent keys of multi-head latent attention (MLA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ..chunks import ChunkBudget
from ..overrides import Overrides
from . import kernels
from .masks import Visibility, compact_mask
from .scores import is_distinct, without_repeats

NAME = "indexcache_sparse"
# A stock indexer reads causality off its mask, so that the attention beside it has to have a whole one.
_NAME_WITH_MASK = "indexcache_sparse_with_mask"

# While a query sees at most this many times as many keys as it selects, products with all of them cost less on
# a CPU than gathering the selected ones.
_DENSE_UP_TO = 4


class SparseAttention:
    """Lets a model's attention layers read only the keys that their indexer selected.

    With ``W_k`` and ``W_v`` the halves of ``kv_b_proj`` and ``c`` a latent key, ``q . (W_k c) = (W_k^T q) . c``
    and ``sum_t p_t (W_v c_t) = W_v (sum_t p_t c_t)``: no key or value of a single head is ever made.

    Two things change. ``config._attn_implementation`` names an attention function that takes the
    selected indices, and a mask function that builds no ``[tokens, tokens]`` tensor. And ``expand_kv``
    of each attention layer hands on the latent keys, one for all heads, instead of expanding them for
    each: the key projection is absorbed into the queries, the value projection into the output.

    Args:
        model: a transformers DSA model of a family with latent keys and token indices.
        stack_name: the path of its decoder layers.
        budget: memory for a chunk of rows.
        whole_mask: build ``[tokens, tokens]`` masks after all, as stock indexers need them.
    """

    def __init__(self, model: nn.Module, stack_name: str, budget: ChunkBudget, whole_mask: bool = False) -> None:
        _register()
        attentions: list[Any] = [layer.self_attn for layer in model.get_submodule(stack_name).children()]
        configs = {id(attention.config): attention.config for attention in attentions}
        self._implementations = [(config, config._attn_implementation) for config in configs.values()]
        self._overrides = Overrides()
        for attention in attentions:
            self._overrides.replace(attention, "expand_kv", lambda stock: _LatentKeys(budget))
        for config in configs.values():
            config._attn_implementation = _NAME_WITH_MASK if whole_mask else NAME

    def remove(self) -> None:
        """Gives the model its own attention back."""
        self._overrides.undo()
        for config, implementation in self._implementations:
            config._attn_implementation = implementation


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    for name, mask in ((NAME, compact_mask), (_NAME_WITH_MASK, eager_mask)):
        AttentionInterface.register(name, sparse_attention)
        AttentionMaskInterface.register(name, mask)


@dataclass
class _LatentKeys:
    """Replaces ``expand_kv``: latent keys ``[batch, 1, keys, rank + rope]`` and, their first ``rank``, values.

    Args:
        budget: memory for a chunk of rows.
        attended: how often sparse attention has read what this handed out.
    """

    budget: ChunkBudget
    attended: int = 0

    def __call__(self, kv_nope: torch.Tensor, k_rot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = _side_by_side(kv_nope, k_rot)
        return torch.cat((kv_nope, k_rot), dim=-1) if both is None else both, kv_nope


def _side_by_side(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """Both as one tensor without a copy, where each row of ``right`` lies behind that of ``left`` in memory."""
    width = left.shape[-1] + right.shape[-1]
    together = (
        left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
        and left.stride() == right.stride()
        and left.shape[:-1] == right.shape[:-1]
        and right.storage_offset() == left.storage_offset() + left.shape[-1]
        and left.stride(-1) == 1
        and left.stride(-2) >= width
    )
    return left.as_strided((*left.shape[:-1], width), left.stride()) if together else None


def sparse_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    indices: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers' ``AttentionInterface``: MLA over selected or nearby keys.

    A key counts once however often it is selected, and one that the query does not see not at all, as
    in transformers' own. A query that sees nothing (padding) gives zeros.

    Args:
        module: the attention layer, whose ``expand_kv`` a ``SparseAttention`` has replaced.
        query: ``[batch, heads, queries, nope + rope]``.
        key: latent keys ``[batch, 1, keys, rank + rope]``.
        value: not read, the keys hold it.
        attention_mask: ``[batch, 1, queries, keys]``, as ``compact_mask`` makes it or dense.
        scaling: of the scores.
        indices: ``[batch, queries, width]`` int32 places of selected keys; None for layers without indexer.
        s_aux: ``[heads]`` sinks, logits of a key without value.
        sliding_window: of layers without indexer, how many keys back a query sees.

    Returns:
        ``[batch, queries, heads, value dim]``, and no attention weights.
    """
    module.expand_kv.attended += 1
    (batch_size, heads, count, _), budget = query.shape, module.expand_kv.budget
    out = query.new_empty(batch_size, count, heads, module.v_head_dim)
    # With a live cache there are more keys than queries, and the queries are the last of them.
    visible = Visibility(attention_mask[:, 0], first=key.shape[2] - count)
    layer = _LayerProjections(module, query.dtype, query.device, scaling, s_aux)
    for batch in range(batch_size):
        sequence = _SequenceAttention(layer, query[batch], key[batch, 0], visible, batch, out[batch], budget)
        if indices is None:
            sequence.attend_nearby(sliding_window or count)
        else:
            sequence.attend_selected(indices[batch], is_distinct(indices))
    return out, None


def logit_factors(module: Any, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys whose products are a layer's logits, not scaled yet, whichever attention it runs.

    Args:
        module: the attention layer.
        query: ``[batch, heads, queries, nope + rope]``.
        key: as the attention function got it: ``[batch, heads, keys, nope + rope]``, or latent keys
            ``[batch, 1, keys, rank + rope]`` where ``SparseAttention`` is installed.

    Returns:
        ``[batch, heads, queries, dim]``, and ``[batch, heads or 1, keys, dim]``.
    """
    if not isinstance(module.expand_kv, _LatentKeys):
        return query, key
    layer = _LayerProjections(module, query.dtype, query.device, 1.0, None)
    return torch.cat(layer.absorbed(query), dim=-1), key


class _LayerProjections:
    """What is the same for all sequences of a call: projections, scale, sinks."""

    def __init__(
        self, module: Any, dtype: torch.dtype, device: torch.device, scaling: float, sinks: torch.Tensor | None
    ) -> None:
        self.rank, self.nope, self.values = module.kv_lora_rank, module.qk_nope_head_dim, module.v_head_dim
        self.scaling = scaling
        self.sinks = None if sinks is None else sinks.float()
        # Through the module, so that hooks bring offloaded weights and quantised ones are read as they act.
        unit = torch.eye(self.rank, dtype=dtype, device=device)
        self.both = module.kv_b_proj(unit)
        both = self.both.view(self.rank, -1, self.nope + self.values)
        # The rows of kv_b_proj's weight, head by head: nope rows for keys, then the rows for values.
        self.to_latent = both[..., : self.nope].permute(1, 2, 0)
        """``[heads, nope, rank]``: takes queries to the space of the latent keys."""
        self.to_value = both[..., self.nope :].transpose(0, 1)
        """``[heads, rank, value dim]``: takes averaged latent keys to values."""

    def absorbed(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[heads, queries, nope + rope]`` to ``[heads, queries, rank]``, and the rotary part beside it."""
        # q . (W_k c) = (W_k^T q) . c, so that no key of a single head is made. The rotary part has no projection.
        return query[..., : self.nope] @ self.to_latent, query[..., self.nope :]

    def expanded(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[heads, keys, nope + rope]`` and values ``[heads, keys, value dim]`` of latent keys."""
        both = (latent[:, : self.rank] @ self.both).view(len(latent), -1, self.nope + self.values)
        both, rope = both.transpose(0, 1), latent[:, self.rank :]
        keys = torch.cat((both[..., : self.nope], rope.expand(len(both), -1, -1)), dim=-1)
        return keys, both[..., self.nope :]

    def weights(self, scores: torch.Tensor, seen: torch.Tensor, heads: int) -> torch.Tensor:
        """``exp(s_t) / (sum_u exp(s_u) + exp(sink))`` over the keys ``t`` (last) that are seen, fp32.

        A row that sees nothing and has no sink gives zeros.

        Args:
            scores: any number of dimensions, keys last; not scaled yet, and overwritten if they are fp32.
            seen: likewise, true where a query sees a key.
            heads: which dimension is that of the heads, each of which has a sink.
        """
        scores = scores.float().mul_(self.scaling).masked_fill_(~seen, -torch.inf)
        # The highest score is taken off all of them, and cancels in the fraction: no exponential overflows.
        highest = scores.amax(-1, keepdim=True)
        sinks = None if self.sinks is None else self.sinks.view(-1, *[1] * (scores.dim() - 1 - heads))
        if sinks is not None:
            highest = torch.maximum(highest, sinks)
        highest = highest.masked_fill(highest == -torch.inf, 0.0)  # -inf - -inf would be NaN
        weights = scores.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + (sinks - highest).exp()
        return weights.div_(total.masked_fill(total == 0, 1.0))


@dataclass(frozen=True)
class _SequenceAttention:
    """One sequence of a call.

    Args:
        query: ``[heads, queries, nope + rope]``.
        latent: ``[keys, rank + rope]``.
        batch: which one it is in ``visible``.
        out: ``[queries, heads, value dim]``, written.
    """

    layer: _LayerProjections
    query: torch.Tensor
    latent: torch.Tensor
    visible: Visibility
    batch: int
    out: torch.Tensor
    budget: ChunkBudget

    def attend_selected(self, indices: torch.Tensor, distinct: bool) -> None:
        """Over ``indices`` ``[queries, width]``, which are known to be distinct or not."""
        (count, width), rank = indices.shape, self.layer.rank
        if kernels.usable(self.latent, (rank, self.latent.shape[1] - rank), 512) and self.visible.causal:
            self._attend_fused(indices, distinct)
            return
        times = _DENSE_UP_TO if self.latent.device.type == "cpu" else 1
        # Queries at places below ``width`` see no more than they select: gathering spares them nothing anywhere.
        # Behind a live cache no query is at such a place.
        dense = 0 if self.visible.first else min(count, times * width)
        self._attend_dense(indices[:dense])
        self._attend_gathered(indices, dense, distinct)

    def attend_nearby(self, window: int) -> None:
        """Over the last ``window`` keys, the query's own included."""
        heads, count = self.query.shape[:2]

        first = self.visible.first

        def work(start: int, end: int) -> None:
            nearest = (max(0, first + start - window + 1), first + end)
            seen = self.visible.block(self.batch, (start, end), nearest, window)
            self._attend_all(start, end, *self.layer.expanded(self.latent[slice(*nearest)]), seen)

        # A chunk of r rows sees up to window + r keys. Rows are counted as seeing two windows, which holds while a
        # chunk has no more rows than the window has keys.
        self.budget.run(count, 4 * 3 * heads * min(count, 2 * window), self.latent.device, work)

    def _attend_dense(self, indices: torch.Tensor) -> None:
        """The first queries, through products with all keys that they see."""
        count = len(indices)
        if not count:
            return
        keys, values = self.layer.expanded(self.latent[:count])

        def work(start: int, end: int) -> None:
            # What lies behind the last query is seen by none: all of it falls into a column that is dropped.
            selected = torch.zeros(end - start, end + 1, dtype=torch.bool, device=keys.device)
            places = indices[start:end].long()
            selected.scatter_(1, places.masked_fill_((places < 0) | (places > end), end), True)
            seen = selected[:, :end] & self.visible.block(self.batch, (start, end), (0, end))
            self._attend_all(start, end, keys[:, :end], values[:, :end], seen)

        # Of one query: about three rows of fp32 for each head (scores, their mask, weights), and what it selected.
        self.budget.run(count, 4 * (3 * len(self.query) + 1) * count, self.latent.device, work)

    def _attend_all(
        self, start: int, end: int, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
    ) -> None:
        """Queries ``start`` to ``end - 1`` over ``keys`` and ``values`` ``[heads, keys, dim]``, where seen."""
        query = self.query[:, start:end]
        if self.layer.sinks is None:
            mixed = scaled_dot_product_attention(
                query[None], keys[None], values[None], seen[None, None], scale=self.layer.scaling
            )[0]
        else:
            mixed = self.layer.weights(query.float() @ keys.mT.float(), seen, heads=0).to(values.dtype) @ values
        self.out[start:end] = mixed.transpose(0, 1)

    def _attend_gathered(self, indices: torch.Tensor, first: int, distinct: bool) -> None:
        """Queries from ``first`` on, through a copy of the latent keys that each selected.

        The reference of the kernel ``fused_attention``.
        """
        (count, width), (heads, _) = indices.shape, self.query.shape[:2]

        def work(start: int, end: int) -> None:
            start, end = first + start, first + end
            chosen = indices[start:end] if distinct else without_repeats(indices[start:end])
            chosen = chosen.long()
            places = chosen.clamp(min=0)
            seen = (chosen >= 0) & self.visible.chosen(self.batch, (start, end), places)
            # [queries, width, rank + rope], and absorbed queries [queries, heads, rank + rope].
            keys = self.latent[places]
            queries = torch.cat(self.layer.absorbed(self.query[:, start:end]), dim=-1).transpose(0, 1)
            weights = self.layer.weights(queries.float() @ keys.mT.float(), seen[:, None], heads=1)
            mixed = weights.to(keys.dtype) @ keys[..., : self.layer.rank]
            self.out[start:end] = (mixed.transpose(0, 1) @ self.layer.to_value).transpose(0, 1)

        # Of one query: gathered keys and their fp32 copy; three [heads, width] tensors of fp32 scores, their copy
        # and weights; and what says which places count.
        row_bytes = width * (self.latent.shape[1] * (self.latent.element_size() + 4) + 4 * (3 * heads + 6))
        self.budget.run(count - first, row_bytes, self.latent.device, work)

    def _attend_fused(self, indices: torch.Tensor, distinct: bool) -> None:
        """All queries, in one kernel a chunk."""
        from .kernels.attention import fused_attention

        heads, count = self.query.shape[:2]
        blind = min(count, indices.shape[1]) if distinct and self.layer.sinks is None else 0
        if blind:  # these see no more than they select
            keys, values = self.layer.expanded(self.latent[:blind])
            mixed = scaled_dot_product_attention(
                self.query[None, :, :blind], keys[None], values[None], is_causal=True, scale=self.layer.scaling
            )
            self.out[:blind] = mixed[0].transpose(0, 1)

        def work(start: int, end: int) -> None:
            start, end = blind + start, blind + end
            chosen = indices[start:end] if distinct else without_repeats(indices[start:end])
            queries, ropes = self.layer.absorbed(self.query[:, start:end])
            means = fused_attention(
                queries, ropes, self.latent, chosen, start, self.layer.scaling, self.layer.sinks, distinct
            )
            self.out[start:end] = (means @ self.layer.to_value).transpose(0, 1)

        # Of one query and each head: the absorbed query with its rotary part, a mean of latent keys, a value.
        row_bytes = heads * (2 * self.latent.shape[1] + self.layer.values) * self.latent.element_size()
        self.budget.run(count - blind, row_bytes, self.latent.device, work)
