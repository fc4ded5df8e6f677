"""Brings the bytes of one layer to the device while another computes; several processes bring a part each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LostProcessError, first_line
from ..chunks import out_of_memory
from .files import Files
from .layout import Layout
from .memory import host_run

_PART_ALIGNMENT = 64
# Under its name of torch 2.13, where the older one warns, or of releases before.
_all_gather: Any = getattr(
    torch.distributed, "all_gather_single", getattr(torch.distributed, "all_gather_into_tensor", None)
)


@dataclass
class StoredLayer:
    """A layer as stored.

    Args:
        layout: of its run of bytes.
        part: what this process keeps of the run; None where files are read each time.
        shared: whether it keeps that on its device.
    """

    layout: Layout
    part: torch.Tensor | None = None
    shared: bool = False


class Fetcher:
    """One layer's bytes on their way.

    The run lies in one buffer of the device. It is filled while the layer before computes, and is free again as
    soon as its tensors have been made into parameters. Where several processes work together each of them reads,
    or keeps in host memory, an equal part of a run, and all gather the whole from one another.

    Args:
        device: where runs go.
        largest: bytes of the largest run.
        processes: that gather; 1 where this one brings all of it.
        rank: of this process among them.
    """

    def __init__(self, device: torch.device, largest: int, processes: int = 1, rank: int = 0) -> None:
        self._device = device
        self.processes, self._rank = processes, rank
        self._files = Files()
        self._size = processes * part_size(largest, processes)
        self._run = torch.empty(self._size, dtype=torch.uint8, device=device)
        self._staging: torch.Tensor | None = None
        # Fetches are made in the order in which they were asked for, the same on every process.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="layers")
        self._stream: Any = None
        self._free: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._run.record_stream(self._stream)  # it may be let go while a copy into it is under way
        self.done()  # the buffer's memory may have been another tensor's, with work on it still to be done
        self.weight_bytes = 0
        """Bytes brought to this device so far."""

    @property
    def read_rate(self) -> float:
        """Bytes a second that came from files so far."""
        return self._files.rate

    def keep(self, layer: StoredLayer, on_device: bool = False) -> None:
        """Reads this process's part of ``layer`` into host memory, or on to the device, where it stays."""
        size = part_size(layer.layout.size, self.processes)
        if on_device and self._device.type != "cpu":
            layer.part = self._staged(layer.layout, size, self._rank * size).to(self._device)
        else:
            layer.part = host_run(size, self._device)
            self._files.read(layer.layout, layer.part, self._rank * size)
        layer.shared = on_device

    def start(self, layer: StoredLayer) -> Future[Any]:
        """Begins to bring ``layer``; the buffer has to be free, see ``done``. All processes call it alike."""
        return self._worker.submit(self._bring, layer)

    def tensors(self, fetched: Future[Any], layer: StoredLayer) -> dict[str, torch.Tensor]:
        """The tensors of a layer that ``start`` began to bring, by stored name; valid until ``done``.

        Raises:
            StorageError: a file cannot be read.
            LostProcessError: another process is gone.
        """
        arrived = fetched.result()
        if arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(arrived)
        return layer.layout.views(self._run)

    def alone(self, layer: StoredLayer) -> dict[str, torch.Tensor]:
        """The tensors of ``layer``, all of them brought by this process, whatever the others do."""
        size = layer.layout.size
        if layer.part is not None and self.processes == 1:
            run = layer.part
        elif self._stream is None:
            run = torch.empty(size, dtype=torch.uint8)
            self._files.read(layer.layout, run)
        else:
            run = self._staged(layer.layout, size, 0)
        self.weight_bytes += layer.layout.stored
        # To new memory: the buffer may hold what the others go on to sweep with.
        return layer.layout.views(run[:size].to(self._device))

    def rest(self) -> None:
        """Gives memory back that only a load needs."""
        self._staging = None

    def done(self) -> None:
        """The buffer's tensors are read, as far as what was asked of the device until now goes."""
        if self._stream is not None:
            self._free = torch.cuda.current_stream(self._device).record_event()

    def _bring(self, layer: StoredLayer) -> Any:
        size = part_size(layer.layout.size, self.processes)
        whole = self._run[: self.processes * size]
        mine = whole[self._rank * size : (self._rank + 1) * size]
        if self._stream is None:
            self._fill(layer, mine)
            self._gather(whole, mine)
            self.weight_bytes += layer.layout.stored
            return None
        torch.cuda.set_device(self._device)
        part = layer.part
        if part is None:
            part = self._staged(layer.layout, size, self._rank * size)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free)
            mine.copy_(part, non_blocking=True)
            copied = self._stream.record_event()
            self._gather(whole, mine)
            arrived = self._stream.record_event()
        if layer.part is None:
            copied.synchronize()  # the staging buffer is read into again
        self.weight_bytes += layer.layout.stored
        return arrived

    def _fill(self, layer: StoredLayer, mine: torch.Tensor) -> None:
        if layer.part is not None:
            mine.copy_(layer.part)
        else:
            self._files.read(layer.layout, mine, self._rank * len(mine))

    def _staged(self, layout: Layout, size: int, first: int) -> torch.Tensor:
        """``size`` bytes of a run from ``first`` on, read from files into host memory that serves all in turn."""
        if self._staging is None or len(self._staging) < size:
            self._staging = host_run(max(size, self._size // self.processes), self._device)
        part = self._staging[:size]
        self._files.read(layout, part, first)
        return part

    def _gather(self, whole: torch.Tensor, mine: torch.Tensor) -> None:
        if self.processes == 1:
            return
        try:
            _all_gather(whole, mine.clone() if self._stream is None else mine)
        except RuntimeError as error:  # each transport has its own words
            if out_of_memory(error):  # here, and not where it was lost
                raise
            raise LostProcessError(f"another process of this run was lost: {first_line(error)[:120]}") from error


def part_size(size: int, processes: int) -> int:
    """Bytes that each of ``processes`` brings of a run of ``size``."""
    share = -(-size // processes)
    return -(-share // _PART_ALIGNMENT) * _PART_ALIGNMENT


def largest_run(layers: Sequence[StoredLayer]) -> int:
    """Bytes of the longest of the layers' runs."""
    return max((layer.layout.size for layer in layers), default=0)
