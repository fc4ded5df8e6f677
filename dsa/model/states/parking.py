"""Keeps states that wait for their turn: on the device while there is room, else in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...stream.memory import HostRuns, host_run
from ..stack import State

Row = TypeVar("Row")


@dataclass
class ParkedState:
    """A state that waits.

    Args:
        bytes: that its tensors take.
        state: itself, where it waits on the device, or as it is coming back to it.
        host: its tensors' content, where it waits in host memory.
        meta: the state with tensors of the meta device in place of its own.
        event: when the last copy is complete.
    """

    bytes: int
    state: State | None = None
    host: torch.Tensor | None = None
    meta: State | None = None
    event: Any = None


class Parking:
    """Where the rows of a sweep wait while others go through a layer.

    What a GPU has no room for waits in pinned memory. It is copied there while the next row computes, and comes
    back while the one before does.

    Args:
        device: that computes.
        budget: bytes of waiting states on it.
        runs: of host memory that states wait in; others may have used them before.
    """

    def __init__(self, device: torch.device, budget: int, runs: HostRuns | None = None) -> None:
        self._device, self._free = device, budget
        self._parks = device.type == "cuda"
        self._runs = runs or HostRuns(device)
        if self._parks:
            self._leaving: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._coming: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def park(self, state: State) -> ParkedState:
        """Lets ``state`` wait; nobody may hold on to it."""
        size = state.bytes
        if not self._parks or size <= self._free:
            self._free -= size
            return ParkedState(size, state)
        tensors, meta = _emptied(state)
        host, copied = self._runs.take(sum(map(_room, tensors)))
        self._leaving.wait_stream(torch.cuda.current_stream(self._device))
        if copied is not None:
            self._leaving.wait_event(copied)
        with torch.cuda.stream(self._leaving):
            for tensor, place in zip(tensors, _views(host, tensors), strict=True):
                place.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._leaving)
            event = self._leaving.record_event()
        return ParkedState(size, None, host, meta, event)

    def states(self, rows: Sequence[Row], of: Callable[[Row], ParkedState]) -> Iterator[tuple[Row, State]]:
        """The rows with their states on the device; the next one comes meanwhile. Nothing waits afterwards."""
        for number, row in enumerate(rows):
            self._call(of(row))
            if number + 1 < len(rows):
                self._call(of(rows[number + 1]))
            yield row, self._take(of(row))

    def _call(self, parked: ParkedState) -> None:
        """Begins to bring a state back."""
        if parked.state is not None:
            return
        assert parked.host is not None
        assert parked.meta is not None
        tensors, _ = _emptied(parked.meta)
        places = [torch.empty_like(tensor, device=self._device) for tensor in tensors]
        self._coming.wait_stream(torch.cuda.current_stream(self._device))
        self._coming.wait_event(parked.event)
        with torch.cuda.stream(self._coming):
            for place, source in zip(places, _views(parked.host, tensors), strict=True):
                place.copy_(source, non_blocking=True)
                place.record_stream(self._coming)  # it may be let go before anyone has waited for the copy
            parked.event = self._coming.record_event()
        parked.state = _with(parked.meta, iter(places))

    def _take(self, parked: ParkedState) -> State:
        state, parked.state = parked.state, None
        assert state is not None, "a state is taken once"
        if parked.host is None:
            self._free += parked.bytes
            return state
        torch.cuda.current_stream(self._device).wait_event(parked.event)
        self._runs.give(parked.host, parked.event)
        parked.host = None
        return state


class SelectionInHost:
    """A selection that many layers read, in host memory; indices in half of their bytes.

    Args:
        selection: on a device.
    """

    def __init__(self, selection: torch.Tensor) -> None:
        self._device, self._dtype = selection.device, selection.dtype
        dtype = torch.int32 if selection.dtype == torch.int64 else selection.dtype
        run = host_run(selection.numel() * dtype.itemsize, selection.device)
        self._waiting = _noted(run.view(dtype).view(selection.shape), selection)
        self._waiting.copy_(selection)

    def back(self) -> torch.Tensor:
        """The selection on its device, as it was."""
        selection = self._waiting.to(self._device, non_blocking=True).to(self._dtype)
        return _noted(selection, self._waiting)


def _noted(copy: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """``copy`` with the notes that stand on ``tensor``: indexers say so of selections that repeat no key."""
    vars(copy).update(vars(tensor))
    return copy


def _room(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, to where the next one may begin."""
    return -(-tensor.numel() * tensor.element_size() // 16) * 16


def _views(run: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Parts of ``run`` with the shapes and types of ``tensors``, one behind the other."""
    start = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        yield run[start : start + size].view(tensor.dtype).view(tensor.shape)
        start += _room(tensor)


def _emptied(state: State) -> tuple[list[torch.Tensor], State]:
    """The tensors of ``state`` in order, and the state with nothing in them."""
    tensors = [state.hidden]
    if isinstance(state.selection, torch.Tensor):
        tensors.append(state.selection)
    tensors += [tensor for store in state.carried.values() for entry in store.values() for tensor in entry]
    return tensors, _with(state, iter([tensor.to("meta") for tensor in tensors]))


def _with(state: State, tensors: Iterator[torch.Tensor]) -> State:
    """``state`` with ``tensors`` in the places of its own."""
    hidden, selection = next(tensors), state.selection
    if isinstance(selection, torch.Tensor):
        selection = _noted(next(tensors), selection)
    carried = {
        argument: {entry: tuple(next(tensors) for _ in values) for entry, values in store.items()}
        for argument, store in state.carried.items()
    }
    return State(hidden, selection, carried)
