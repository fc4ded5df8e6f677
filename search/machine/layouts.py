"""Prices the places where weights can wait, sweep by sweep: memory, bytes moved, seconds, and what waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...system.console import byte_count
from ..cost import SweepRows
from ..estimate import ExpectedCost
from .machine import DEQUANTISING, HOST_SHARE, Machine

MEMORY, SHARED_OUT, HOST, DISK = "whole on each GPU", "shared out over the GPUs", "host memory", "disk"
COMPUTE = "compute"
# Of what weights leave on a GPU, for rows that wait and for kept states: as the evaluator shares it out.
_SHARE_FOR_ROWS, _SHARE_FOR_STATES = 0.5, 0.25
_PATHS = 4
# Waiting is named from this share of the time on.
_NOTEWORTHY = 0.02


@dataclass(frozen=True)
class StreamedModel:
    """What of a checkpoint makes its price, for windows of one length.

    Args:
        stored: bytes of each decoder layer as it is stored and moved.
        plain: bytes of each as it computes.
        moving: bytes of a GPU for the largest layer that runs, what it is made from, and the next one as stored.
        resident: bytes of embedding, last norm and head, which every GPU has.
        is_dequantised: whether layers that come to the GPU are dequantised there, once a sweep.
        working: bytes that one window takes on a GPU beside the weights.
        row: bytes of a window's state between layers.
        seconds: of each layer for one window, full and shared; None where they are not known.
        windows: of which states are kept.
    """

    stored: tuple[int, ...]
    plain: tuple[int, ...]
    moving: int
    resident: int
    is_dequantised: bool
    working: int
    row: int
    seconds: tuple[tuple[float, float], ...] | None
    windows: int

    def dequantising_seconds(self, layer: int) -> float:
        """Of a layer, once a sweep on each GPU."""
        return (self.stored[layer] + self.plain[layer]) / DEQUANTISING if self.is_dequantised else 0.0


@dataclass(frozen=True)
class Layout:
    """Where the weights lie, and the search's price then.

    Args:
        name: one of the four.
        reason: why it does not fit, or is not known to; "" where it does.
        gpu_bytes: that each GPU needs.
        host_bytes: that each node needs.
        kept_states: layers at which a window's states are kept on its GPU; None where they are at every site.
        layer_windows: decoder-layer executions.
        sweeps: passes over the layers.
        moved_bytes: that come to each GPU in all sweeps, from wherever they lie.
        seconds: of all sweeps; None where layers' times are not known.
        busy: share of the seconds in which a GPU computes, on average: it may wait for weights, or have no window.
        waits_for: what takes longest: ``compute``, or the link that the rest waits for.
    """

    name: str
    reason: str
    gpu_bytes: int
    host_bytes: int
    kept_states: int | None
    layer_windows: int
    sweeps: int
    moved_bytes: int
    seconds: float | None
    busy: float | None
    waits_for: str | None

    @property
    def sweep_bytes(self) -> int:
        """That come to each GPU in a sweep, on average: one that starts at a kept state moves fewer layers."""
        return self.moved_bytes // max(1, self.sweeps)


def price(machine: Machine, model: StreamedModel, expected: Callable[[int | None], ExpectedCost]) -> list[Layout]:
    """All layouts of ``model`` on ``machine``: those that fit, the fastest first; then the others.

    Args:
        machine: that is to search.
        model: that is to be searched.
        expected: what the search will run where states are kept at so many layers.
    """
    names = (MEMORY, SHARED_OUT, HOST, DISK) if machine.processes > 1 else (MEMORY, HOST, DISK)
    layouts = [_priced(name, machine, model, expected) for name in names]
    return sorted(layouts, key=lambda layout: (bool(layout.reason), layout.seconds or 0.0))


def _priced(
    name: str, machine: Machine, model: StreamedModel, expected: Callable[[int | None], ExpectedCost]
) -> Layout:
    gpu = _gpu_bytes(name, machine, model)
    left = max(0, machine.gpu_bytes - gpu + model.working)
    host = _host_bytes(name, machine, model) + _parked_bytes(name, machine, model, left, expected)
    if name == HOST:
        host = max(host, round(_host_bytes(name, machine, model) / HOST_SHARE))
    kept = _kept_states(machine, model, left)
    cost = expected(kept)
    links = _links(name, machine)
    moved = sum(model.stored[layer] for sweep in cost.sweep_rows for layer in _layers_run(sweep) if name != MEMORY)
    dequantising = [
        model.dequantising_seconds(layer) if name != MEMORY else 0.0 for layer in range(len(model.stored))
    ]
    times = _times(cost.sweep_rows, machine.processes, model, dequantising, sum(links.values()))
    waits = None
    if times is not None:
        waits = COMPUTE if times.waiting <= _NOTEWORTHY * times.total else max(links, key=links.__getitem__)
    return Layout(
        name=name,
        reason=_reason(name, machine, gpu, host),
        gpu_bytes=gpu,
        host_bytes=host,
        kept_states=kept,
        layer_windows=cost.layer_windows,
        sweeps=cost.sweeps,
        moved_bytes=moved,
        seconds=None if times is None else times.total,
        busy=None if times is None else times.working / times.total,
        waits_for=waits,
    )


def _gpu_bytes(name: str, machine: Machine, model: StreamedModel) -> int:
    """Of each GPU: all layers as they compute, or its part of them and those that move; and one window's work."""
    if name == MEMORY:
        return sum(model.plain) + model.resident + model.working
    part = -(-sum(model.stored) // machine.processes) if name == SHARED_OUT else 0
    return part + model.moving + model.resident + model.working


def _host_bytes(name: str, machine: Machine, model: StreamedModel) -> int:
    """Of each node, without rows that wait: its part of the layers, or of the one that is being read."""
    if name == HOST:
        return -(-sum(model.stored) // machine.nodes)
    return -(-max(model.stored) // machine.nodes) if name == DISK else 0


def _parked_bytes(
    name: str, machine: Machine, model: StreamedModel, left: int, expected: Callable[[int | None], ExpectedCost]
) -> int:
    """Of each node, for rows of a sweep that its GPUs have no room for; few go together where no layer comes."""
    if name == MEMORY:
        return 0
    # How many rows pass a layer together hardly depends on how many states are kept.
    rows = _most_rows(expected(None).sweep_rows, machine.processes)
    return max(0, rows - int(_SHARE_FOR_ROWS * left) // model.row) * model.row * machine.gpus


def _links(name: str, machine: Machine) -> Mapping[str, float]:
    """Seconds for a byte of a layer on each link that it passes, one after the other."""
    links = {}
    if name == DISK:
        links["disk"] = machine.disk_seconds
    if name in (HOST, DISK):
        links["host link"] = machine.host_link_seconds
    if name != MEMORY and machine.processes > 1:
        links["network" if machine.gathers_over_network else "GPU links"] = machine.gather_seconds
    return links


def _kept_states(machine: Machine, model: StreamedModel, left: int) -> int | None:
    """At how many layers states are kept, in a quarter of what weights leave of a GPU; None where at all."""
    share = -(-model.windows // machine.processes)
    count = int(_SHARE_FOR_STATES * left) // max(1, _PATHS * share * model.row)
    return None if count >= len(model.stored) else count


def _most_rows(sweeps: tuple[SweepRows, ...], processes: int) -> int:
    """Rows that one process carries through a layer, at most."""
    return max(
        (
            math.ceil(max(map(sum, zip(sweep.full, sweep.shared, strict=True))) * _share(sweep, processes))
            for sweep in sweeps
        ),
        default=0,
    )


def _share(sweep: SweepRows, processes: int) -> float:
    """The part of a sweep's rows that the process with most windows runs."""
    return math.ceil(sweep.windows / processes) / sweep.windows if sweep.windows else 1.0


def _layers_run(sweep: SweepRows) -> list[int]:
    """Layers that a sweep runs, in their order."""
    return [layer for layer, rows in enumerate(zip(sweep.full, sweep.shared, strict=True)) if any(rows)]


@dataclass(frozen=True)
class _Times:
    """Seconds of all sweeps: together, those in which every GPU waits for weights, and an average GPU's work."""

    total: float
    waiting: float
    working: float


def _times(
    sweeps: tuple[SweepRows, ...],
    processes: int,
    model: StreamedModel,
    dequantising: Sequence[float],
    byte_seconds: float,
) -> _Times | None:
    """Times of all sweeps; None where those of layers are not known.

    A layer computes while the next one comes; nothing hides the coming of a sweep's first one.
    """
    if model.seconds is None:
        return None
    total = waiting = working = 0.0
    for sweep in sweeps:
        share, layers = _share(sweep, processes), _layers_run(sweep)
        coming = [byte_seconds * model.stored[layer] for layer in layers]
        waiting += sum(coming[:1])
        total += sum(coming[:1])
        for layer, following in zip(layers, [*coming[1:], 0.0], strict=True):
            full, shared = model.seconds[layer]
            rows = sweep.full[layer] * full + sweep.shared[layer] * shared
            longest = share * rows + dequantising[layer]
            total += max(longest, following)
            waiting += max(0.0, following - longest)
            working += rows / processes + dequantising[layer]
    return _Times(total, waiting, working)


def _reason(name: str, machine: Machine, gpu_bytes: int, host_bytes: int) -> str:
    if gpu_bytes > machine.gpu_bytes:
        needed, there = byte_count(gpu_bytes), byte_count(machine.gpu_bytes)
        return f"does not fit: it needs {needed} on each GPU, which has {there}"
    if machine.host_bytes is None:
        return "not known to fit, as no host memory was given: add --ram" if name == HOST else ""
    if host_bytes > machine.host_bytes:
        needed, there = byte_count(host_bytes), byte_count(machine.host_bytes)
        return f"does not fit: it needs {needed} of host memory, a node has {there}"
    return ""
