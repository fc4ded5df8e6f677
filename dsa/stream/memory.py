"""Memory for runs of bytes: on a device, and on the host so that a GPU copies from it at full speed."""

from __future__ import annotations

import ctypes
import weakref
from contextlib import suppress
from typing import Any

import torch

from ...errors import MeasurementError

# glibc's name for the size from which a block of memory is the system's own, and that size.
_MMAP_THRESHOLD, _LARGE_TENSOR = -3, 256 << 10


def host_run(size: int, device: torch.device) -> torch.Tensor:
    """``[size]`` bytes of host memory, pinned where ``device`` is a GPU.

    Torch's own pinned memory comes in powers of two: of a layer of 20 GB it would take 32.

    Raises:
        MeasurementError: the host has no such memory.
    """
    try:
        run = torch.empty(size, dtype=torch.uint8)
    except (RuntimeError, MemoryError) as error:
        raise MeasurementError(
            f"the host has no {size / 1e9:.1f} GB left for weights and states", hint="lower --max-host-memory"
        ) from error
    if device.type == "cuda" and size:
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(run.data_ptr(), size, 0)) == 0:
            weakref.finalize(run.untyped_storage(), runtime.cudaHostUnregister, run.data_ptr())
        else:
            # It is copied from all the same, only more slowly. The refusal would be raised by this thread's next
            # kernel, whatever that is, and by no other.
            with suppress(RuntimeError):
                torch.zeros(1, device=device)
    return run


class HostRuns:
    """Runs of host memory that serve over and over, so that a GPU is told of each but once, and not every sweep.

    There are as many as were in use at a time, and in the end each is as large as the largest that was asked for.

    Args:
        device: that copies from and to them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[tuple[torch.Tensor, Any]] = []

    def take(self, size: int) -> tuple[torch.Tensor, Any]:
        """A run of at least ``size`` bytes, and the event before which nothing may be written to it; or None.

        Raises:
            MeasurementError: the host has no such memory.
        """
        self._free.sort(key=lambda entry: len(entry[0]))
        place = next((place for place, (run, _) in enumerate(self._free) if len(run) >= size), None)
        if place is not None:
            return self._free.pop(place)
        if self._free:  # the largest of those that are too small makes room for one that is not
            copied = self._free[-1][1]
            if copied is not None:
                copied.synchronize()
            del self._free[-1]  # no name holds the run any more, so that its memory is free before more is taken
        return host_run(size, self._device), None

    def give(self, run: torch.Tensor, copied: Any = None) -> None:
        """Takes a run back; what is copied from it is complete at the event ``copied``."""
        self._free.append((run, copied))


def give_back_what_is_freed() -> None:
    """Makes glibc return the memory of a freed tensor to the host at once, and keep none for later ones.

    Layers come and go in tensors of megabytes, from several threads. Kept freed ones took up to 0.8 of a copy of
    the model beside it, in two processes on a CPU. Elsewhere than on Linux with glibc nothing is changed.
    """
    with suppress(OSError, AttributeError, TypeError):  # another allocator
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_TENSOR)
