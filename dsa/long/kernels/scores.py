"""Index scores of a chunk of queries in one kernel: products, ReLU, head weights and sum stay on the chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# The tile of scores that one program makes.
_QUERIES, _KEYS = 64, 128


@triton.jit
def _scores(
    queries, keys, weights, out, first, count, total, stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # One program: QUERIES x KEYS of out_nt = sum_h weights_nh relu(queries_nh . keys_t), summed in fp32. Shapes:
    # queries [count, HEADS, DIM], keys [total, DIM], weights [count, HEADS], out [count, total].
    row = tl.program_id(0) * QUERIES
    key = tl.program_id(1) * KEYS
    # No query of this tile sees a key at or behind the horizon: the last one's place is first + row + QUERIES - 1.
    horizon = tl.minimum(first + row + QUERIES, total)
    if key >= horizon:
        return
    rows = row + tl.arange(0, QUERIES)
    places = key + tl.arange(0, KEYS)
    dims = tl.arange(0, DIM)
    inside = rows < count
    key_rows = tl.load(keys + places[:, None].to(tl.int64) * DIM + dims, mask=(places < total)[:, None], other=0.0)
    key_columns = tl.trans(key_rows)
    sums = tl.zeros((QUERIES, KEYS), tl.float32)
    # The keys stay, the heads pass: their products need no exchange between threads to be summed.
    for head in tl.range(0, HEADS, num_stages=3):
        offset = rows.to(tl.int64) * HEADS + head
        query = tl.load(queries + offset[:, None] * DIM + dims, mask=inside[:, None], other=0.0)
        weight = tl.load(weights + offset, mask=inside, other=0.0)
        sums += tl.maximum(tl.dot(query, key_columns), 0.0) * weight[:, None]
    address = out + rows[:, None].to(tl.int64) * stride + places
    tl.store(address, sums, mask=inside[:, None] & (places < horizon))


def fused_index_scores(
    queries: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor, first: int
) -> torch.Tensor:
    """``sum_h weights_h relu(queries_h . keys)`` accumulated in fp32: ``[queries, keys]``.

    The PyTorch reference is ``index_scores`` in ``dsa/long/scores.py``.
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
