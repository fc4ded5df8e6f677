"""The numbers that quantised weights stand for: (codes - zeros) * scales in fp32, then rounded to a type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from ....errors import ModelError
from .quantised import FETCH_AGAIN, QuantisedWeight

# The sixteen numbers of FP4 (e2m1) by their bits: sign, two of exponent, one of mantissa.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def dequantised(weight: QuantisedWeight, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The plain weight, of ``weight.shape``, on the device of its stored tensors.

    The product is made in fp32 and then rounded to ``dtype``, as transformers' ``Fp8Dequantize`` does. Codes have
    few bits: the product is exact wherever scales are of 16 bits or fewer.

    Args:
        weight: what it is made of.
        tensors: its stored tensors by name.
        dtype: of the result.

    Raises:
        ModelError: an order of columns that cannot be.
    """
    codes, scales = tensors[weight.codes], tensors[weight.scales].reshape(weight.grid)
    if _has_kernel(weight, codes):
        from ..kernels import scaled_blocks

        return scaled_blocks(codes, scales, weight.block or weight.shape[-2:], dtype)
    grids = [scale_values(scales)]
    if weight.zeros is not None:
        grids.append(_zero_points(weight, tensors[weight.zeros]).reshape(weight.grid))
    block = weight.block
    if weight.order is not None:
        groups = _groups(weight, tensors[weight.order])
        grids, block = [grid.index_select(-1, groups) for grid in grids], (1, 1)
    values = _values(weight, codes)
    for zeros in grids[1:]:
        for part, zero in _parts(values, zeros, block):
            part.sub_(zero)
    for part, scale in _parts(values, grids[0], block):
        part.mul_(scale)
    return values.to(dtype)


def dequantise_into(
    weights: Sequence[QuantisedWeight],
    tensors: MutableMapping[str, torch.Tensor],
    places: Mapping[str, torch.Tensor],
) -> None:
    """Writes plain weights to their places, of their shapes; all that are alike in one kernel, if there is one.

    Args:
        weights: to make; their stored tensors are taken out of ``tensors``.
        tensors: by stored names.
        places: by the weights' names; floats, of any strides but with columns side by side.

    Raises:
        ModelError: see ``dequantised``.
    """
    alike: dict[tuple[Any, ...], list[QuantisedWeight]] = {}
    for weight in weights:
        codes, place = tensors[weight.codes], places[weight.name]
        if _has_kernel(weight, codes) and codes.dim() == 2:
            kind = (codes.shape, weight.block, tensors[weight.scales].dtype, place.dtype, place.stride())
            alike.setdefault(kind, []).append(weight)
        else:
            parts = {name: tensors.pop(name) for name in weight.stored}
            place.copy_(dequantised(weight, parts, place.dtype))
    for group in alike.values():
        from ..kernels import scale_blocks

        scale_blocks(
            [tensors.pop(weight.codes).contiguous() for weight in group],
            [tensors.pop(weight.scales).reshape(weight.grid).contiguous() for weight in group],
            group[0].block or group[0].shape,
            [places[weight.name] for weight in group],
        )


def check_extents(weights: Sequence[QuantisedWeight], tensors: Mapping[str, torch.Tensor]) -> None:
    """Holds the tensors that say shapes against the shapes that headers make; they are fetched all at once.

    Raises:
        ModelError: one says another shape.
    """
    said = [(weight, tensors[weight.extent]) for weight in weights if weight.extent is not None]
    extents = torch.stack([extent.long() for _, extent in said]).tolist() if said else []
    for (weight, _), extent in zip(said, extents, strict=True):
        if tuple(extent) != weight.shape:
            raise ModelError(
                f"{weight.extent} says {extent}, where {weight.codes} and {weight.scales} make "
                f"{list(weight.shape)}",
                hint=FETCH_AGAIN,
            )


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """Scales as fp32; bytes are exponents of 2, 127 too high, and 255 is not a number."""
    return (scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales).float()


def unpacked_integers(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Signed integers ``[..., count]`` of ``bits`` bits from int32 ``[..., words]``, the first one lowest.

    Each is stored 2^(bits - 1) too high, as ``pack_to_int32`` of compressed-tensors does it; ``bits`` divides 32.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    codes = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count] - (1 << (bits - 1))


def unpacked_e2m1(pairs: torch.Tensor) -> torch.Tensor:
    """FP4 numbers ``[..., 2 * bytes]`` as fp32 from bytes, the lower half of each first."""
    halves = pairs.contiguous().view(torch.uint8)
    numbers = torch.tensor(_E2M1, dtype=torch.float32, device=pairs.device)
    return numbers[torch.stack((halves & 15, halves >> 4), -1).flatten(-2).int()]


def _values(weight: QuantisedWeight, codes: torch.Tensor) -> torch.Tensor:
    """The codes as fp32, in memory of their own."""
    if weight.encoding == "e2m1":
        return unpacked_e2m1(codes)
    if weight.encoding == "integer":
        codes = unpacked_integers(codes, weight.bits, weight.shape[-1])
    return codes.float()


def _parts(
    values: torch.Tensor, grid: torch.Tensor, block: tuple[int, int] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of ``values`` ``[..., rows, columns]``, and the numbers of the grid that are for their blocks."""
    if block is None:
        yield values, grid.reshape(())
        return
    rows, columns = values.shape[-2:]
    wide = grid.repeat_interleave(block[1], -1)[..., :columns]
    whole = rows // block[0]
    tall = values[..., : whole * block[0], :].view(*values.shape[:-2], whole, block[0], columns)
    yield tall, wide[..., :whole, None, :]
    yield values[..., whole * block[0] :, :], wide[..., whole:, :]


def _zero_points(weight: QuantisedWeight, zeros: torch.Tensor) -> torch.Tensor:
    if zeros.dtype == torch.int32:
        zeros = unpacked_integers(zeros.transpose(-1, -2), weight.bits, weight.shape[-2]).transpose(-1, -2)
    return zeros.float()


def _groups(weight: QuantisedWeight, order: torch.Tensor) -> torch.Tensor:
    """The group of each column; where none was ever set, all are -1, and columns stand in order."""
    block = weight.block or (1, weight.shape[-1])
    groups, count = order.long(), weight.grid[-1]
    if bool((groups == -1).all()):
        return torch.arange(weight.shape[-1], device=order.device) // block[1]
    if bool(((groups < 0) | (groups >= count)).any()) or bool((groups.bincount() != block[1]).any()):
        raise ModelError(
            f"{weight.order} does not put {block[1]} columns into each of {count} groups", hint=FETCH_AGAIN
        )
    return groups


def _has_kernel(weight: QuantisedWeight, codes: torch.Tensor) -> bool:
    if weight.encoding != "number" or weight.zeros is not None or weight.order is not None:
        return False
    if not codes.is_cuda or codes.dtype != torch.float8_e4m3fn or codes.dim() < 2:
        return False
    from importlib.util import find_spec

    return find_spec("triton") is not None
