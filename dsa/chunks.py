"""Runs work over many rows in chunks that fit, and in smaller ones where memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Smaller chunks would spare nothing and take forever.
_SMALLEST_CHUNK = 16 << 20
# Words in plain RuntimeErrors of the libraries below torch: its CPU allocator, CUDA itself, cuBLAS and Triton.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "BLAS_STATUS_ALLOC_FAILED")


class ChunkBudget:
    """How much memory a chunk of rows may take.

    Args:
        on_cpu: bytes, where the work runs on a CPU.
        on_gpu: bytes on a GPU; halved each time its memory runs out.
        on_shortage: called with a line for the user when that happens.
    """

    def __init__(self, on_cpu: int, on_gpu: int, on_shortage: Callable[[str], None] = lambda line: None) -> None:
        self._on_cpu = on_cpu
        self._on_gpu = on_gpu
        self._on_shortage = on_shortage

    def bytes(self, device: torch.device) -> int:
        """What a chunk may take on ``device`` now."""
        return self._on_cpu if device.type == "cpu" else self._on_gpu

    def run(
        self,
        rows: int,
        row_bytes: int,
        device: torch.device,
        work: Callable[[int, int], None],
    ) -> None:
        """Calls ``work(first, end)`` until all ``rows`` are done; a call that runs out of memory is repeated.

        Args:
            rows: how many there are.
            row_bytes: what one row takes at most.
            device: where.
            work: writes its rows' results where they belong; must bear being called again for them.

        Raises:
            RuntimeError: not even one row fits; ``out_of_memory`` knows it.
        """
        first, chunk_rows = 0, max(1, self.bytes(device) // max(1, row_bytes))
        while first < rows:
            end = min(rows, first + chunk_rows)
            if self._fits(work, first, end):
                first = end
            else:
                torch.cuda.empty_cache()
                chunk_rows = (end - first) // 2
                self._on_gpu = max(_SMALLEST_CHUNK, self._on_gpu // 2)
                self._on_shortage(f"out of memory: going on with chunks of {chunk_rows} rows")

    @staticmethod
    def _fits(work: Callable[[int, int], None], first: int, end: int) -> bool:
        try:
            work(first, end)
        except (RuntimeError, MemoryError) as error:
            if end - first < 2 or not out_of_memory(error):
                raise
            return False  # the exception holds on to the frames, and so to their tensors, until it is gone
        return True


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
