"""FP8 weights times the scales of their blocks, many weights in one kernel: each byte is read and written once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# The tile of a weight that one program makes: a block of DeepSeek's, so that it needs one scale. Each thread has
# 128 numbers of it, which is enough for all of a GPU's memory to be busy.
_ROWS, _COLUMNS = 128, 128
# A block that no weight is larger than: weights with one scale run one program, whatever their shapes.
_WHOLE = 1 << 30
# Numbers from whose multiples 16 bytes are read at a time.
_ALIGNED = 16
# From this generation on a GPU makes fp32 of e4m3 itself.
_CONVERTS = (8, 9)


@triton.jit
def _as_fp32(codes, NATIVE: tl.constexpr):
    # e4m3 as fp32, exactly. As bytes: the same mantissa in fp32, whose exponent is biased by 127, not 7, is 2^120
    # too small.
    if NATIVE:
        values = codes.to(tl.float32)
    else:
        bytes = codes.to(tl.int32)
        bits = ((bytes & 0x80) << 24) | ((bytes & 0x7F) << 20)
        values = bits.to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
        values = tl.where((bytes & 0x7F) == 0x7F, float("nan"), values)
    return values


@triton.jit
def _as_scales(scales, EXPONENTS: tl.constexpr):
    # As fp32; bytes are exponents of 2, 127 too high: 0 is below fp32's normal numbers, and 255 is no number.
    if EXPONENTS:
        bytes = scales.to(tl.int32)
        bits = tl.where(bytes == 0, 0x00400000, tl.where(bytes == 255, 0x7FC00000, bytes << 23))
        values = bits.to(tl.float32, bitcast=True)
    else:
        values = scales.to(tl.float32)
    return values


@triton.jit
def _scaled_blocks(
    codes, scales, out, places, count, rows, columns, wide, stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NATIVE: tl.constexpr, EXPONENTS: tl.constexpr, ALIGNED: tl.constexpr, WHOLE_TILES: tl.constexpr,
):  # fmt: skip
    # One program: ROWS x COLUMNS of out_nk = codes_nk scales[n // BLOCK_ROWS, k // BLOCK_COLUMNS], in fp32, of the
    # weight program_id(2). Shapes: codes [rows, columns], scales [high, wide], out [rows, columns], ``stride``
    # numbers from row to row; those of weight i begin at places[0..2, i], in numbers from the pointers on. NATIVE
    # needs WHOLE_TILES: what stands in for numbers beyond an edge is an integer, which Triton makes no e4m3 of.
    weight = tl.program_id(2)
    first_code = tl.load(places + weight)
    first_scale = tl.load(places + count + weight)
    first_out = tl.load(places + 2 * count + weight)
    if ALIGNED:
        first_code = tl.multiple_of(first_code, 16)
        first_out = tl.multiple_of(first_out, 16)
    row, column = tl.program_id(1) * ROWS, tl.program_id(0) * COLUMNS
    below, beside = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    # 64 bits once a program: what is added for a number fits into 32.
    source = codes + (first_code + row.to(tl.int64) * columns + column) + (below * columns + beside)
    target = out + (first_out + row.to(tl.int64) * stride + column) + (below * stride + beside)
    inside = (row + below < rows) & (column + beside < columns)
    if WHOLE_TILES:
        value = _as_fp32(tl.load(source), NATIVE)
    else:
        value = _as_fp32(tl.load(source, mask=inside, other=0), False)
    if (BLOCK_ROWS % ROWS == 0) & (BLOCK_COLUMNS % COLUMNS == 0):  # one scale for all of it
        block = (row // BLOCK_ROWS) * wide + column // BLOCK_COLUMNS
        value = value * _as_scales(tl.load(scales + first_scale + block), EXPONENTS)
    else:
        blocks = ((row + below) // BLOCK_ROWS) * wide + (column + beside) // BLOCK_COLUMNS
        value = value * _as_scales(tl.load(scales + first_scale + blocks, mask=inside, other=0), EXPONENTS)
    if WHOLE_TILES:
        tl.store(target, value.to(out.dtype.element_ty))
    else:
        tl.store(target, value.to(out.dtype.element_ty), mask=inside)


def scale_blocks(
    codes: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    block: Sequence[int],
    out: Sequence[torch.Tensor],
) -> None:
    """Writes FP8 numbers times the scales of their blocks into ``out``, for many weights of one shape at once.

    A layer has hundreds of experts: a launch for each takes longer than the numbers do. The PyTorch reference is
    ``dequantised`` in ``dsa/stream/formats/arithmetic.py``, with equal bits.

    Args:
        codes: ``[rows, columns]`` e4m3 each, contiguous, as for all of the others on one device.
        scales: ``[ceil(rows / block rows), ceil(columns / block columns)]``, contiguous: floats, or bytes that are
            exponents of 2, 127 too high (ue8m0).
        block: rows and columns that share a scale; the last ones may be fewer.
        out: ``[rows, columns]`` floats each, with columns side by side.
    """
    device = codes[0].device
    (rows, columns), (high, wide), stride = codes[0].shape, scales[0].shape, out[0].stride(0)
    if high == wide == 1:
        block = (_WHOLE, _WHOLE)
    whole_tiles = rows % _ROWS == 0 and columns % _COLUMNS == 0
    native = (
        whole_tiles
        and device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= _CONVERTS
    )
    exponents = scales[0].dtype in (torch.uint8, torch.float8_e8m0fnu)
    starts = [_starts(tensors) for tensors in (codes, scales, out)]
    aligned = all(start % _ALIGNED == 0 for start in (*starts[0], *starts[2], columns, stride))
    # The small copy does not wait for the device: the driver has taken it over when the call is back.
    places = torch.tensor(starts).to(device, non_blocking=True)
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS), len(codes))
    with torch.cuda.device_of(codes[0]):  # Triton launches on the current one
        _scaled_blocks[grid](
            codes[0] if native else codes[0].view(torch.uint8),
            scales[0].view(torch.uint8) if exponents else scales[0],
            out[0], places, len(codes), rows, columns, wide, stride, block[0], block[1], _ROWS, _COLUMNS,
            native, exponents, aligned, whole_tiles, num_warps=4,
        )  # fmt: skip


def scaled_blocks(
    codes: torch.Tensor, scales: torch.Tensor, block: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Likewise a new tensor ``[..., rows, columns]`` of ``dtype`` from codes and scales of such shapes."""
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if out.numel():
        stacks = (codes.contiguous(), scales.contiguous(), out)
        parts = [tensor.reshape(-1, *tensor.shape[-2:]).unbind() for tensor in stacks]
        scale_blocks(parts[0], parts[1], block, parts[2])
    return out


def _starts(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Where each begins, in numbers from the first on: addresses are of one space, whatever memory they are in."""
    first, size = tensors[0].data_ptr(), tensors[0].element_size()
    return [(tensor.data_ptr() - first) // size for tensor in tensors]
