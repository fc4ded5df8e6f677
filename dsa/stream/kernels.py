"""FP8 weights times the scales of their blocks in one kernel: each byte is read once, each result written once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# The tile of a weight that one program makes.
_ROWS, _COLUMNS = 32, 128
# A block that no weight is larger than: weights with one scale run one program, whatever their shapes.
_WHOLE = 1 << 30


@triton.jit
def _scaled_blocks(
    codes, scales, out, rows, columns, high, wide,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # One program: ROWS x COLUMNS of out_nk = codes_nk scales[n // BLOCK_ROWS, k // BLOCK_COLUMNS], in fp32.
    # Shapes: codes, out [weights, rows, columns], scales [weights, high, wide]; codes as bytes.
    weight = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)
    place = (weight * rows + row)[:, None] * columns + column
    code = tl.load(codes + place, mask=inside, other=0).to(tl.int32)
    # As fp32 of the same mantissa, whose exponent is biased by 127, not 7: 2^120 too small, and exact.
    bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
    value = bits.to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
    value = tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    if (BLOCK_ROWS % ROWS == 0) & (BLOCK_COLUMNS % COLUMNS == 0):  # one scale for all of it
        across = tl.program_id(0) * COLUMNS // BLOCK_COLUMNS
        scale = tl.load(scales + (weight * high + tl.program_id(1) * ROWS // BLOCK_ROWS) * wide + across)
        value = value * scale
    else:
        block = (weight * high + row // BLOCK_ROWS)[:, None] * wide + column // BLOCK_COLUMNS
        value = value * tl.load(scales + block, mask=inside, other=0.0)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def scaled_blocks(
    codes: torch.Tensor, scales: torch.Tensor, block: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """FP8 numbers times the scales of their blocks: ``[..., rows, columns]`` of ``dtype``.

    The PyTorch reference is ``dequantised`` in ``dsa/stream/formats/arithmetic.py``, with equal bits.

    Args:
        codes: ``[..., rows, columns]`` e4m3.
        scales: ``[..., ceil(rows / block rows), ceil(columns / block columns)]`` fp32.
        block: rows and columns that share a scale; the last ones may be fewer.
        dtype: of the result, floats.
    """
    rows, columns = codes.shape[-2:]
    high, wide = scales.shape[-2:]
    if high == wide == 1:
        block = (_WHOLE, _WHOLE)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS), codes.shape[:-2].numel())
    with torch.cuda.device_of(codes):  # Triton launches on the current one
        _scaled_blocks[grid](
            codes.contiguous().view(torch.uint8), scales.contiguous(), out, rows, columns, high, wide,
            block[0], block[1], _ROWS, _COLUMNS, num_warps=4,
        )  # fmt: skip
    return out
