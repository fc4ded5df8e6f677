"""Index scores of a chunk of queries in one kernel: products, ReLU, head weights and sum stay on the chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_QUERIES, _KEYS = 64, 128


@triton.jit
def _scores(
    queries, keys, weights, out, first, count, total, stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * QUERIES
    key = tl.program_id(1) * KEYS
    horizon = tl.minimum(first + row + QUERIES, total)
    if key >= horizon:
        return
    rows = row + tl.arange(0, QUERIES)
    places = key + tl.arange(0, KEYS)
    dims = tl.arange(0, DIM)
    inside = rows < count
    block = tl.load(keys + places[:, None].to(tl.int64) * DIM + dims, mask=(places < total)[:, None], other=0.0)
    turned = tl.trans(block)
    sums = tl.zeros((QUERIES, KEYS), tl.float32)
    # The keys stay, the heads pass: their products need no exchange between threads to be summed.
    for head in tl.range(0, HEADS, num_stages=3):
        where = rows.to(tl.int64) * HEADS + head
        query = tl.load(queries + where[:, None] * DIM + dims, mask=inside[:, None], other=0.0)
        weight = tl.load(weights + where, mask=inside, other=0.0)
        sums += tl.maximum(tl.dot(query, turned), 0.0) * weight[:, None]
    where = out + rows[:, None].to(tl.int64) * stride + places
    tl.store(where, sums, mask=inside[:, None] & (places < horizon))


def index_scores(queries: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor, first: int) -> torch.Tensor:
    """``sum_h weights_h relu(queries_h . keys)`` accumulated in fp32: ``[queries, keys]``.

    A query's scores are written up to its own place at least; what follows is undefined.

    Args:
        queries: ``[queries, heads, dim]``, dim a power of two from 16 on; exact in the type of ``keys``.
        keys: ``[keys, dim]`` 16-bit floats.
        weights: ``[queries, heads]``.
        first: place of the first query among the keys.
    """
    count, heads, dim = queries.shape
    out = torch.empty(count, len(keys), dtype=torch.float32, device=keys.device)
    grid = (triton.cdiv(count, _QUERIES), triton.cdiv(len(keys), _KEYS))
    with torch.cuda.device_of(keys):  # Triton launches on the current one
        _scores[grid](
            queries.to(keys.dtype).contiguous(), keys.contiguous(), weights.float().contiguous(), out,
            first, count, len(keys), out.stride(0), heads, dim, _QUERIES, _KEYS, num_warps=4,
        )  # fmt: skip
    return out
