"""What a search will cost on a machine that need not be here, layout by layout, and its table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from rich.table import Table

from ..dsa.checkpoint.sizes.work import layer_times
from ..dsa.long.capacity import layer_bytes, parked_bytes, row_bytes
from ..dsa.stream.footprint import Footprint, footprint
from ..dsa.stream.room import Room, moving_bytes
from ..errors import ModelError
from ..search.machine.layouts import Layout, StreamedModel, price
from ..search.machine.machine import Machine
from ..system.console import Reporter, duration, new_console, print_line, print_table
from .estimate_machine import Pricing
from .footprint import footprint_document, footprint_rows, gigabytes
from .job.prepare import Intent

_TIMES = {
    "measured": "timed on an H100",
    "scaled": "timed on an H100 at another length, scaled by operations",
    "computed": "computed from operations, at rates of an H100",
    "given": "as given",
    "here": "timed here",
    "unknown": "not known: give --layer-seconds",
}


@dataclass(frozen=True)
class Prices:
    """The layouts of a checkpoint on a machine, and what they were computed from.

    Args:
        machine: that was asked about.
        assumed: which of its rates nobody gave.
        footprint: bytes of the checkpoint.
        seconds: of a full and of a shared layer, means over the layers; None where they are not known.
        origin: where these are from.
        layouts: those that fit first, the fastest of them first.
    """

    machine: Machine
    assumed: tuple[str, ...]
    footprint: Footprint
    seconds: tuple[float, float] | None
    origin: str
    layouts: tuple[Layout, ...]


def price_layouts(
    intent: Intent, pricing: Pricing, timed_here: tuple[float, float] | None, reporter: Reporter
) -> Prices:
    """Prices the search of ``intent`` on a machine, by its config and by the headers of weights that are here.

    Args:
        intent: the search.
        pricing: the machine, and what is known of its speed.
        timed_here: seconds of a full and of a shared layer as this machine took them; None where it was not asked.
        reporter: told of progress.

    Raises:
        ModelError: neither headers nor the config tell how large its layers are.
    """
    checkpoint, length, size = intent.checkpoint, intent.length, intent.running.computes_in.itemsize
    reporter.doing(f"reading sizes of {checkpoint.model_id}")
    bytes_of = footprint(checkpoint, size)
    if bytes_of is None:
        raise ModelError(
            f"how large the layers of {checkpoint.model_id!r} are cannot be told by its config, and no whole "
            "weights are here",
            hint="fetch its safetensors files: their headers tell",
        )
    if intent.running.room != Room():
        reporter.warn(
            "--gpus prices a machine by its memory: --max-memory and --max-host-memory do nothing here; lower the "
            "sizes of --gpus and --ram"
        )
    times, origin = _times(intent, pricing, timed_here)
    width, config = checkpoint.selection_width, checkpoint.config
    model = StreamedModel(
        stored=bytes_of.layers,
        plain=bytes_of.plain,
        moving=moving_bytes(bytes_of),
        resident=bytes_of.resident,
        is_dequantised=bytes_of.quantised,
        working=layer_bytes(config, length, size, intent.running.backends, on_gpu=True)
        + row_bytes(config, length, size, width),
        row=parked_bytes(config, length, size, width),
        seconds=times,
        windows=intent.window_counts[0],
    )
    expected = cache(lambda kept: intent.expected(reporter, kept))
    layouts = price(pricing.machine, model, expected)
    mean = None
    if times is not None:
        mean = sum(full for full, _ in times) / len(times), sum(shared for _, shared in times) / len(times)
    return Prices(pricing.machine, pricing.assumed, bytes_of, mean, origin, tuple(layouts))


def _times(
    intent: Intent, pricing: Pricing, timed_here: tuple[float, float] | None
) -> tuple[tuple[tuple[float, float], ...] | None, str]:
    """Seconds of each layer for a window, full and shared, and where they are from."""
    layers = intent.checkpoint.layers
    if pricing.layer_seconds is not None:
        return (pricing.layer_seconds,) * layers, "given"
    if timed_here is not None:
        return (timed_here,) * layers, "here"
    times = layer_times(intent.checkpoint, intent.length)
    return (None, "unknown") if times is None else (times.seconds, times.origin)


def prices_document(prices: Prices) -> dict[str, Any]:
    """Prices as JSON."""
    footprint = prices.footprint
    return {
        "machine": asdict(prices.machine) | {"assumed": list(prices.assumed)},
        "weights": footprint_document(footprint),
        "layer_seconds": {
            "full": prices.seconds and prices.seconds[0],
            "shared": prices.seconds and prices.seconds[1],
            "from": prices.origin,
        },
        "layouts": [
            {
                "name": layout.name,
                "fits": not layout.reason,
                "reason": layout.reason or None,
                "gpu_bytes": layout.gpu_bytes,
                "host_bytes": layout.host_bytes,
                "kept_states": layout.kept_states,
                "layer_windows": layout.layer_windows,
                "sweeps": layout.sweeps,
                "bytes_a_sweep": layout.sweep_bytes,
                "moved_bytes": layout.moved_bytes,
                "seconds": layout.seconds,
                "busy": layout.busy,
                "waits_for": layout.waits_for,
            }
            for layout in prices.layouts
        ],
    }


def prices_table(prices: Prices) -> None:
    """Prints a machine, the weights on it, and its layouts, on stdout."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(prices).items():
        table.add_row(name, value)
    new_console(narrow=True).print(table)
    console = new_console()
    fitting = [layout for layout in prices.layouts if not layout.reason]
    if fitting:
        console.print()
        print_table(console, _layout_table(fitting))
    if len(fitting) < len(prices.layouts):
        console.print()
    for layout in prices.layouts:
        if layout.reason:
            print_line(console, f"{layout.name}: {layout.reason}")
    if not fitting:
        print_line(console, "nothing fits: shorter windows (--window) or GPUs with more memory would")


def _facts(prices: Prices) -> dict[str, str]:
    machine, footprint = prices.machine, prices.footprint
    host = (
        "host memory not given"
        if machine.host_bytes is None
        else f"{gigabytes(machine.host_bytes)} of host memory"
    )
    nodes = f"{machine.nodes} nodes, each with " if machine.nodes > 1 else ""
    rates = {"disk-rate": f"disk {machine.disk_rate / 1e9:.3g} GB/s"}
    if machine.nodes > 1:
        rates["network-rate"] = f"network {machine.network_rate / 1e9:.3g} GB/s"
    links = [rate + (" (assumed)" if name in prices.assumed else "") for name, rate in rates.items()]
    layer = _TIMES[prices.origin]
    if prices.seconds is not None:
        full, shared = prices.seconds
        layer = f"{1000 * full:.3g} ms full, {1000 * shared:.3g} ms shared, on average, {layer}"
    return {
        "machine": f"{nodes}{machine.gpus} x {gigabytes(machine.gpu_bytes)} GPU, {host}, {', '.join(links)}",
        **footprint_rows(footprint_document(footprint)),
        "layer": layer,
    }


def _layout_table(layouts: list[Layout]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("weights wait in")
    for heading in ("a GPU", "a node", "kept at", "sweeps", "a sweep", "time"):
        table.add_column(heading, justify="right")
    table.add_column("waits for")
    table.add_column("GPUs busy", justify="right")
    for layout in layouts:
        time = "unknown" if layout.seconds is None else duration(layout.seconds)
        table.add_row(
            layout.name,
            gigabytes(layout.gpu_bytes),
            gigabytes(layout.host_bytes),
            "all" if layout.kept_states is None else f"{layout.kept_states}",
            f"{layout.sweeps:,}",
            gigabytes(layout.sweep_bytes),
            time,
            layout.waits_for or "unknown",
            "" if layout.busy is None else f"{layout.busy:.0%}",
        )
    return table
