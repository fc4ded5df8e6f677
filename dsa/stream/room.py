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
        host: bytes of one host's memory, for all its processes together.
    """

    device: int | None = None
    host: int | None = None


@dataclass(frozen=True)
class LayerSizes:
    """Bytes of a layer.

    Args:
        stored: of its tensors as they are in files.
        plain: of its parameters, as they compute.
    """

    stored: int
    plain: int


@dataclass(frozen=True)
class Homes:
    """Where the weights of each layer are between sweeps.

    Args:
        device: numbers of those that stay where they compute.
        host: that come from the host's memory.
        files: that are read from files each sweep.
    """

    device: tuple[int, ...]
    host: tuple[int, ...] = ()
    files: tuple[int, ...] = ()


# While experts are fused, a layer's parts stand beside what is made of them.
_CONVERSION = 2.0


def homes(layers: Sequence[LayerSizes], resident: int, device: int, host: int) -> Homes:
    """Where layers are kept, so that as few bytes as possible move in a sweep.

    Streamed layers are spread evenly between those that stay: while the latter compute, the next one comes.

    Args:
        layers: sizes of all.
        resident: bytes of what is no layer and always stays on the device.
        device: bytes that weights may take there.
        host: bytes that the weights may take in this host's memory.

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
            f"layer {number} takes {_gb(layers[number].plain)}, and {_gb(moving)} while it is made from what is "
            f"stored; with {_gb(resident)} of embedding and head that is more than the {_gb(device)} that weights "
            "may take on the device",
            hint="raise --max-memory, lower --window, or use a larger GPU",
        )
        error.shared = True  # all processes have the least room of all
        raise error
    order = _spread(len(layers))
    staying: list[int] = []
    for number in order:
        if layers[number].plain <= left:
            left -= layers[number].plain
            staying.append(number)
    moving_layers = [number for number in order if number not in set(staying)]
    kept: list[int] = []
    for number in moving_layers:
        if layers[number].stored <= host:
            host -= layers[number].stored
            kept.append(number)
    files = set(moving_layers) - set(kept)
    return Homes(tuple(sorted(staying)), tuple(sorted(kept)), tuple(sorted(files)))


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
    sizes = [LayerSizes(*pair) for pair in zip(footprint.layers, footprint.plain, strict=True)]
    return footprint.resident + min(sum(footprint.plain), _moving(sizes))


def _moving(layers: Sequence[LayerSizes]) -> int:
    """Bytes for the largest layer that runs, what it is made from, and the next one as stored."""
    return round(max((_CONVERSION * layer.plain + layer.stored for layer in layers), default=0))
