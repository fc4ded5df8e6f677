"""Attention of all heads of a query over the latent keys that it selected, gathered as they are needed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_LOG2_E = 1.4426950408889634
# Keys that a program gathers at a time.
_KEYS = 64
# Tensor cores of Hopper multiply 64 rows at once; with few heads narrower products waste less.
_MANY_HEADS = 64


@triton.jit
def _attend(
    queries, ropes, latent, chosen, out, sinks, first, scale, width, count, rope_head, rope_row,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, KEYS: tl.constexpr,
    SINKS: tl.constexpr, FIRST_ONES: tl.constexpr,
):  # fmt: skip
    # One program: the query of one row, a block of its heads. With scores in units of log2, s_t, over the keys t
    # that it selected and sees, out = sum_t 2^(s_t - m) c_t / (sum_t 2^(s_t - m) + 2^(sink - m)); m, the highest
    # score so far, makes no difference to it and keeps the powers in range. Shapes, as in fused_attention:
    # queries, out [HEADS, count, RANK], ropes [HEADS, count, ROPE], latent [keys, RANK + ROPE],
    # chosen [count, width], sinks [HEADS].
    row = tl.program_id(0).to(tl.int64)
    place = first + row
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = head < HEADS
    rank, rope = tl.arange(0, RANK), RANK + tl.arange(0, ROPE)
    query_offset = (head.to(tl.int64) * count + row)[:, None] * RANK + rank
    query = tl.load(queries + query_offset, mask=real[:, None], other=0.0)
    rope_offset = head.to(tl.int64)[:, None] * rope_head + row * rope_row + tl.arange(0, ROPE)
    query_rope = tl.load(ropes + rope_offset, mask=real[:, None], other=0.0)
    # Not -inf: a row that sees nothing would subtract it from itself, and be NaN.
    highest = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, RANK), tl.float32)
    end = tl.minimum(width, place + 1) if FIRST_ONES else width
    for start in tl.range(0, end, KEYS, num_stages=2):
        slot = start + tl.arange(0, KEYS)
        key = tl.load(chosen + row * width + slot, mask=slot < width, other=-1)
        seen = (key >= 0) & (key <= place)
        key_address = latent + tl.where(seen, key, 0).to(tl.int64)[:, None] * (RANK + ROPE)
        keys = tl.load(key_address + rank)
        scores = tl.dot(query_rope, tl.trans(tl.load(key_address + rope)), tl.dot(query, tl.trans(keys)))
        scores = tl.where(seen, scores * scale, -1e30)
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        # Sums so far were made with the old maximum: 2^(s - m') = 2^(s - m) 2^(m - m').
        shrink = tl.exp2(highest - new_highest)
        weights = tl.where(seen, tl.exp2(scores - new_highest[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(keys.dtype), keys, mixed * shrink[:, None])
        highest = new_highest
    if SINKS:
        sink = tl.load(sinks + head, mask=real, other=0.0) * 1.4426950408889634  # log2(e)
        new_highest = tl.maximum(highest, sink)
        shrink = tl.exp2(highest - new_highest)
        mixed = mixed * shrink[:, None]
        total = total * shrink + tl.exp2(sink - new_highest)
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + query_offset, mixed.to(out.dtype.element_ty), mask=real[:, None])


def fused_attention(
    queries: torch.Tensor,
    ropes: torch.Tensor,
    latent: torch.Tensor,
    chosen: torch.Tensor,
    first: int,
    scaling: float,
    sinks: torch.Tensor | None,
    first_ones: bool,
) -> torch.Tensor:
    """Softmax-weighted means of the selected latent keys: ``[heads, queries, rank]``; zeros where none is seen.

    With ``s_ht = scaling (q_h . c_t + r_h . k_t)``, where ``latent_t`` is ``c_t`` and behind it ``k_t``, and ``t``
    runs over the keys that a query selected and sees::

        out_h = sum_t exp(s_ht) c_t / (sum_t exp(s_ht) + exp(sink_h))

    The PyTorch reference is ``_SequenceAttention._attend_gathered`` in ``dsa/long/attention.py``.

    Args:
        queries: ``[heads, queries, rank]``, the key projection absorbed.
        ropes: ``[heads, queries, rope]``, the rotary part; ranks and ropes are powers of two from 16 on.
        latent: ``[keys, rank + rope]`` 16-bit floats; values are the first ``rank``.
        chosen: ``[queries, width]`` int32 places, each at most once; negative and later ones are skipped.
        first: place of the first query.
        scaling: of the scores.
        sinks: ``[heads]`` fp32 logits of a key without value.
        first_ones: whether queries that see fewer keys than ``width`` have these first in their row.
    """
    heads, count, rank = queries.shape
    ropes = ropes if ropes.stride(2) == 1 else ropes.contiguous()
    out = torch.empty(heads, count, rank, dtype=latent.dtype, device=latent.device)
    block = min(_MANY_HEADS, max(16, triton.next_power_of_2(heads)))
    with torch.cuda.device_of(latent):  # Triton launches on the current one
        _attend[(count, triton.cdiv(heads, block))](
            queries.contiguous(), ropes, latent.contiguous(), chosen.contiguous(), out, sinks,
            first, scaling * _LOG2_E, chosen.shape[1], count, ropes.stride(0), ropes.stride(1),
            heads, block, rank, ropes.shape[2], _KEYS, sinks is not None, first_ones,
            num_warps=8 if block == _MANY_HEADS else 4,
        )  # fmt: skip
    return out
