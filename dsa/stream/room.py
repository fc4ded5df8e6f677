"""How many layers stay on the device, which come from the host's memory, and which from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import MeasurementError
from .footprint import Footprint


@dataclass(frozen=True)
class Room:
    """Memory that weights may take; None leaves it to what is free.

    Args:
        device: bytes on each process's device, resident parts, the layer that runs and the next one included.
        host: bytes of the host's memory, or of all hosts' together, for all processes.
    """

    device: int | None = None
    host: int | None = None


@dataclass(frozen=True)
class LayerSizes:
    """Bytes of a layer.

    Args:
        stored: of its tensors as they are in files.
        plain: of its parameters, as they compute.
        making: that are taken beside both while it is made.
    """

    stored: int
    plain: int
    making: int = 0


@dataclass(frozen=True)
class Homes:
    """Where the weights of each layer are between sweeps.

    Args:
        device: numbers of those that stay where they compute.
        shared: of which each of several processes keeps a part on its device.
        host: that come from the host's memory.
        files: that are read from files each sweep.
    """

    device: tuple[int, ...]
    shared: tuple[int, ...] = ()
    host: tuple[int, ...] = ()
    files: tuple[int, ...] = ()


def homes(layers: Sequence[LayerSizes], resident: int, device: int, host: int, processes: int = 1) -> Homes:
    """Where layers are kept, so that as few bytes as possible move in a sweep.

    Streamed layers are spread evenly between those that stay: while the latter compute, the next one comes.

    Args:
        layers: sizes of all.
        resident: bytes of what is no layer and always stays on the device.
        device: bytes that weights may take there.
        host: bytes that the weights may take in the memory of the host, or of all hosts together.
        processes: that gather layers from one another; they can share them out over their devices.

    Raises:
        MeasurementError: not even one layer fits beside the resident parts.
    """
    if resident + sum(layer.plain for layer in layers) <= device:
        return Homes(tuple(range(len(layers))))
    moving = _moving(layers)
    left = device - resident - moving
    if left < 0:
        number = max(range(len(layers)), key=lambda number: layers[number].plain)
        error = MeasurementError(
            f"layer {number} takes {_gb(layers[number].plain)}, and {_gb(moving)} with what it is made from; with "
            f"{_gb(resident)} that always stay, as embedding and head, that is {_gb(resident + moving)}, and "
            f"weights may take {_gb(max(0, device))} of the device",
            hint="raise --max-memory to that if it is set and the device has as much, else lower --window or use "
            "a larger GPU",
        )
        error.shared = True  # all processes have the least room of all
        raise error
    order = _spread(len(layers))
    shared, left = _shared_out(layers, order, left, processes) if processes > 1 else ([], left)
    staying: list[int] = []
    for number in order:
        # A layer that is shared out gives its part's room back when it stays whole.
        needed = layers[number].plain - (_part(layers[number], processes) if number in shared else 0)
        if needed <= left and (processes == 1 or len(shared) == len(layers)):
            left -= needed
            staying.append(number)
    moving_layers = [number for number in order if number not in {*staying, *shared}]
    kept: list[int] = []
    for number in moving_layers:
        if layers[number].stored <= host:
            host -= layers[number].stored
            kept.append(number)
    files = set(moving_layers) - set(kept)
    return Homes(*(tuple(sorted(some)) for some in (staying, set(shared) - set(staying), kept, files)))


def _shared_out(
    layers: Sequence[LayerSizes], order: Sequence[int], left: int, processes: int
) -> tuple[list[int], int]:
    """The layers whose parts fit on every device, and the bytes that are left there."""
    shared = []
    for number in order:
        part = _part(layers[number], processes)
        if part <= left:
            left -= part
            shared.append(number)
    return shared, left


def _part(layer: LayerSizes, processes: int) -> int:
    """Bytes that each process keeps of a layer that is shared out."""
    return -(-layer.stored // processes)


def _spread(count: int) -> list[int]:
    """The numbers below ``count`` in an order whose every beginning lies about evenly among them.

    By the golden ratio: its multiples, modulo one, do (Weyl's sequence).
    """
    return sorted(range(count), key=lambda number: (number * 0.6180339887498949) % 1.0)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def least_on_device(footprint: Footprint | None) -> int:
    """Bytes of a device without which not even one layer at a time can run; 0 where sizes are not known."""
    if footprint is None:
        return 0
    return footprint.resident + min(sum(footprint.plain), moving_bytes(footprint))


def moving_bytes(footprint: Footprint) -> int:
    """Bytes of a device for the largest layer that runs, what it is made from, and the next one as stored."""
    sizes = zip(footprint.layers, footprint.plain, strict=True)
    return _moving([LayerSizes(stored, plain, footprint.making) for stored, plain in sizes])


def making_bytes(footprint: Footprint) -> int:
    """Those of them that are taken only while a layer is made, and free whenever none is there."""
    return moving_bytes(footprint) - max(footprint.layers, default=0)


def _moving(layers: Sequence[LayerSizes]) -> int:
    """Bytes for the largest layer that runs, what it is made from, and the next one as stored.

    What one is made from is in the memory that the next one then comes to. So two layers of plain numbers need as
    much to move as to stay.
    """
    made = max((layer.plain + layer.making for layer in layers), default=0)
    return made + max((layer.stored for layer in layers), default=0)
