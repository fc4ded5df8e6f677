"""The machine that estimate was asked to price, from the command line's words."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingError
from ..recipes.numbers import byte_rate, byte_size, decimal, devices
from ..search.machine.machine import DISK, NETWORK, Machine


@dataclass(frozen=True)
class Pricing:
    """What to price.

    Args:
        machine: that is to search.
        layer_seconds: of a full and of a shared layer for one window, as the user knows them; None for a table's.
        assumed: which of the machine's rates nobody gave.
    """

    machine: Machine
    layer_seconds: tuple[float, float] | None
    assumed: tuple[str, ...]


def pricing_of(
    gpus: str | None,
    nodes: int | None,
    ram: str | None,
    disk_rate: str | None,
    network_rate: str | None,
    layer_seconds: str | None,
) -> Pricing | None:
    """What the options ask to price; None without ``--gpus``.

    Raises:
        SettingError: a size, rate or time that is none, or one of them without ``--gpus``.
    """
    others = {
        "nodes": nodes,
        "ram": ram,
        "disk-rate": disk_rate,
        "network-rate": network_rate,
        "layer-seconds": layer_seconds,
    }
    if gpus is None:
        for option, value in others.items():
            if value is not None:
                raise SettingError(f"--{option} was given without --gpus", hint="add e.g. --gpus 8x80GB")
        return None
    count, memory = devices("gpus", gpus)
    machine = Machine(
        gpus=count,
        gpu_bytes=memory,
        nodes=1 if nodes is None else nodes,
        host_bytes=None if ram is None else byte_size("ram", ram),
        disk_rate=DISK if disk_rate is None else byte_rate("disk-rate", disk_rate),
        network_rate=NETWORK if network_rate is None else byte_rate("network-rate", network_rate),
    )
    assumed = tuple(name for name in ("disk-rate", "network-rate") if others[name] is None)
    return Pricing(machine, None if layer_seconds is None else _seconds(layer_seconds), assumed)


def _seconds(text: str) -> tuple[float, float]:
    """``0.211,0.184`` as seconds of a full and of a shared layer."""
    example = "seconds of a full and of a shared layer, e.g. 0.211,0.184"
    full, comma, shared = text.partition(",")
    if not comma:
        raise SettingError(f"--layer-seconds is {text!r}", hint=f"give {example}")
    seconds = decimal("layer-seconds", full, example), decimal("layer-seconds", shared, example)
    if not all(0 < value < 1e6 for value in seconds):
        raise SettingError(f"--layer-seconds is {text!r}", hint=f"give {example}")
    return seconds
