"""A machine as a search sees it: its GPUs, host memory, and how fast the links are that weights come through."""

from __future__ import annotations

from dataclasses import dataclass

from ...system.console import duration

# Bytes a second, measured on machines with H100: pinned host memory to a GPU, and GPU to GPU inside a node.
HOST_LINK = 55e9
GPU_LINK = 396e9
# Bytes read and written a second where FP8 blocks become bf16, on an H200.
DEQUANTISING = 2.7e12
# Of what a host has free, for layers that stream.
HOST_SHARE = 0.8
# Assumed where nothing is given: an NVMe disk, and what a node receives from the others.
DISK = 6_000_000_000
NETWORK = 25_000_000_000
# Seconds of reading in a sweep beyond which the user is told.
_LONG_READ = 30.0


@dataclass(frozen=True)
class Machine:
    """One node or several that are alike, a process for each GPU.

    Args:
        gpus: of a node.
        gpu_bytes: memory of one.
        nodes: how many.
        host_bytes: memory of a node; None where it is not known.
        disk_rate: bytes a second that a node reads.
        network_rate: bytes a second that a node receives from the others.
    """

    gpus: int
    gpu_bytes: int
    nodes: int = 1
    host_bytes: int | None = None
    disk_rate: float = DISK
    network_rate: float = NETWORK

    @property
    def processes(self) -> int:
        """One for each GPU of all nodes."""
        return self.gpus * self.nodes

    @property
    def gather_seconds(self) -> float:
        """For a byte of a layer of which all GPUs hold equal parts, until each GPU has all of it."""
        return max(self._inside_seconds, self._network_seconds)

    @property
    def gathers_over_network(self) -> bool:
        """Whether the network is what takes longest of that."""
        return self._network_seconds > self._inside_seconds

    @property
    def _inside_seconds(self) -> float:
        return (self.processes - 1) / self.processes / GPU_LINK

    @property
    def _network_seconds(self) -> float:
        return (self.nodes - 1) / self.nodes / self.network_rate

    @property
    def host_link_seconds(self) -> float:
        """For a byte of a layer, of which each GPU copies its part from host memory."""
        return 1 / self.processes / HOST_LINK

    @property
    def disk_seconds(self) -> float:
        """For a byte of a layer, of which each node reads its part."""
        return 1 / self.nodes / self.disk_rate


def disk_warning(size: int, rate: float) -> str | None:
    """A line for whoever waits for files in each sweep; None where that is not long.

    Args:
        size: bytes that a sweep reads.
        rate: bytes a second, as the disk was measured.
    """
    if size <= _LONG_READ * rate:
        return None
    return (
        f"a sweep reads {size / 1e9:,.1f} GB from files, which takes {duration(size / rate)} at "
        f"{rate / 1e9:.3g} GB/s, the rate of the load: a faster disk, more GPUs or more host memory would shorten "
        "it"
    )
