"""Reads stored tensors from safetensors files into a run of bytes, in large pieces, by several threads."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ...errors import StorageError
from .layout import Layout, Piece

# A disk is busy with several reads at a time; each is long enough that starting it costs nothing.
_READERS = 8
_READ_BYTES = 32 << 20


class Files:
    """The files of a checkpoint, opened when first read, and given back when nobody reads any more."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        weakref.finalize(self, _give_back, self._descriptors)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="weights")
        self._bytes, self._seconds = 0, 0.0

    @property
    def rate(self) -> float:
        """Bytes a second, of all that was read."""
        return self._bytes / max(self._seconds, 1e-9)

    def read(self, layout: Layout, into: torch.Tensor, first: int = 0) -> None:
        """Fills ``into`` with the bytes of ``layout`` from ``first`` on; the gaps are left as they are.

        Args:
            layout: of the run.
            into: uint8, in host memory.
            first: the run's byte that comes first.

        Raises:
            StorageError: a file cannot be read, or ends early.
        """
        array: Any = into.numpy()
        memory, began = memoryview(array), time.perf_counter()
        reads = [
            self._readers.submit(self._fill, piece.path, place, memory[start : start + size])
            for piece in layout.pieces
            for place, start, size in _parts(piece, first, len(memory))
        ]
        for read in reads:
            read.result()
        self._seconds += time.perf_counter() - began
        self._bytes += sum(size for piece in layout.pieces for _, _, size in _parts(piece, first, len(memory)))

    def _fill(self, path: Path, place: int, memory: Any) -> None:
        try:
            descriptor = self._descriptors.get(path)
            if descriptor is None:
                # Two threads may open one file at once: one of the two stays, the other is closed.
                opened = os.open(path, os.O_RDONLY)
                descriptor = self._descriptors.setdefault(path, opened)
                if descriptor != opened:
                    os.close(opened)
            while memory:
                count = os.preadv(descriptor, [memory], place)
                if not count:
                    raise StorageError(
                        f"{str(path)!r} ends in the middle of a tensor",
                        hint="restore the file, which was whole when the load began",
                    )
                memory, place = memory[count:], place + count
        except OSError as error:
            raise StorageError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _give_back(descriptors: Mapping[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def _parts(piece: Piece, first: int, size: int) -> Iterator[tuple[int, int, int]]:
    """What to read of ``piece`` for the run's bytes from ``first`` on: (place in the file, in memory, bytes)."""
    start, end = max(piece.start, first), min(piece.start + piece.size, first + size)
    for at in range(start, end, _READ_BYTES):
        yield piece.offset + at - piece.start, at - first, min(_READ_BYTES, end - at)
