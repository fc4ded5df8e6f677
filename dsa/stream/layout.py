"""Where the stored tensors of a layer stand in one run of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import ModelError
from ..checkpoint.stored.shards import TORCH_NAMES, Shard, Tensor

_ALIGNMENT = 64
"""Of each tensor in the run: what torch aligns its own memory to, so that products are rounded as there."""
TYPES: dict[str, torch.dtype] = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAMES.items()}
"""Torch's types by their names in safetensors headers."""


@dataclass(frozen=True)
class Piece:
    """A stored tensor: its place in the run, and in a file.

    Args:
        name: as stored.
        dtype: as stored.
        shape: as stored.
        start: its first byte in the run.
        size: bytes.
        path: of the file that holds it.
        offset: its first byte there.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int
    path: Path
    offset: int


@dataclass(frozen=True)
class Layout:
    """The tensors of one layer, in the order in which files hold them.

    Args:
        pieces: without overlap, each aligned.
        size: bytes of the whole run, gaps included.
    """

    pieces: tuple[Piece, ...]
    size: int

    @property
    def stored(self) -> int:
        """Bytes of the tensors."""
        return sum(piece.size for piece in self.pieces)

    def views(self, run: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors by name, in the memory of ``run`` ``[at least size]``, uint8."""
        return {
            piece.name: run[piece.start : piece.start + piece.size].view(piece.dtype).view(piece.shape)
            for piece in self.pieces
        }


def lay_out(names: Mapping[str, tuple[Shard, Tensor]]) -> Layout:
    """The layout of some stored tensors.

    Args:
        names: the file and the header's entry of each.

    Raises:
        ModelError: a type that torch does not have.
    """
    pieces, start = [], 0
    order = sorted(names.items(), key=lambda entry: (entry[1][0].path, entry[1][1].start))
    for name, (shard, tensor) in order:
        if tensor.dtype not in TYPES:
            raise ModelError(f"{name} is stored as {tensor.dtype}, which torch {torch.__version__} does not read")
        place = shard.data + tensor.start
        pieces.append(Piece(name, TYPES[tensor.dtype], tensor.shape, start, tensor.size, shard.path, place))
        start += -(-tensor.size // _ALIGNMENT) * _ALIGNMENT
    return Layout(tuple(pieces), start)
