"""Who else uses the machine while something is timed: other programs on the CPUs and on the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

# Cores that others keep busy, on average, from which on times are not to be trusted.
_BUSY_CORES = 0.5
# Of a GPU's memory; torch and the driver keep less than this beside what torch counts.
_OTHERS_BYTES = 2 << 30


def watch(device: torch.device) -> Callable[[], str]:
    """Begins to watch; what it gives says in words what others did since, "" if nothing that matters."""
    begin, began = _others_seconds(), time.monotonic()

    def seen() -> str:
        passed = time.monotonic() - began
        cores = (_others_seconds() - begin) / passed if passed > 0 else 0.0
        remarks = []
        if cores >= _BUSY_CORES:
            remarks.append(f"other programs kept {cores:.1f} of {psutil.cpu_count()} CPUs busy")
        if device.type == "cuda" and (size := _others_memory(device)) > _OTHERS_BYTES:
            remarks.append(f"another program holds {size / 1e9:.0f} GB of the GPU")
        return " and ".join(remarks)

    return seen


def _others_seconds() -> float:
    """Seconds of CPUs that others used since the machine started."""
    times, process = psutil.cpu_times(), psutil.Process().cpu_times()
    # Nothing runs while a CPU is idle or waits for a disk.
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    return float(busy) - process.user - process.system


def _others_memory(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))
