"""Triton kernels for long windows, and whether they can run on a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import torch

# The kernels' tiles are laid out for the shared memory of Hopper and of later data-centre GPUs.
_SHARED_MEMORY = 227 << 10


def usable(keys: torch.Tensor, dims: Sequence[int], largest: int) -> bool:
    """Whether the kernels run on ``keys``: 16-bit floats on a GPU with room for the kernels' tiles.

    Args:
        keys: ``[keys, dim]``.
        dims: the sizes that products run over; powers of two from 16 on, as tensor cores take them.
        largest: of these sizes, that tiles still have room for.
    """
    sixteen_bits = keys.dtype in (torch.bfloat16, torch.float16)
    even = all(16 <= dim <= largest and dim & (dim - 1) == 0 for dim in dims)
    return keys.is_cuda and sixteen_bits and even and _has_room(keys.device)


@cache
def _has_room(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) >= _SHARED_MEMORY
