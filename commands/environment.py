"""The env command: a block of versions, machine and settings for a bug report, without anything secret."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ..errors import first_line
from ..system.console import Reporter, new_console
from ..system.exits import print_result
from ..system.versions import TESTED, is_tested, library_versions
from ..version import __version__
from .job.start import load_libraries

_PREFIXES = ("INDEXCACHE_", "HF_", "TRANSFORMERS_", "CUDA_", "PYTORCH_", "OMP_", "NCCL_")
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NO_COLOR", "NVIDIA_TF32_OVERRIDE")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL|COOKIE", re.IGNORECASE)
# What hides secrets in values: an address's user and password, and what looks like a token of the hub or an API.
_HIDDEN = re.compile(
    r"(?<=://)[^/@\s]+@|\b(?:hf|sk|gh[a-z]|glpat|xox[a-z])[-_][\w-]{8,}|(?<=[?&])[^=&\s]+=[^&\s]+"
)


def describe(environment: Mapping[str, str], reporter: Reporter) -> dict[str, Any]:
    """What a bug report needs to know; what cannot be found out is said, and ends nothing.

    ``environment`` holds the variables as they were before this program set any.
    """
    versions = {"indexcache": __version__, **library_versions()}
    untested = [name for name in TESTED if not is_tested(name)]
    return {
        "versions": versions,
        "tested": {name: {"lowest": low, "newest": new} for name, (low, new) in TESTED.items()},
        "untested": untested,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "torch": _torch(reporter),
        "variables": shown_variables(environment),
    }


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _torch(reporter: Reporter) -> dict[str, Any]:
    """How torch was built and which GPUs it sees; an import that fails is what many reports are about."""
    try:
        load_libraries(reporter)
        import torch

        gpus = [
            {
                "name": torch.cuda.get_device_name(number),
                "memory_bytes": torch.cuda.get_device_properties(number).total_memory,
                "capability": ".".join(map(str, torch.cuda.get_device_capability(number))),
            }
            for number in range(torch.cuda.device_count())
        ]
        return {
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "gpus": gpus,
            "problem": None,
        }
    except Exception as error:  # whatever a broken installation raises
        return {"problem": f"{type(error).__name__}: {first_line(error)}"}


def shown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that change what the program does, each with its value where that is no secret."""
    names = sorted(name for name in environment if name.startswith(_PREFIXES) or name in _NAMES)
    return {
        name: "set, not shown" if _SECRET.search(name) else _HIDDEN.sub("(not shown)", environment[name])
        for name in names
    }


def show(description: dict[str, Any], as_json: bool) -> None:
    """Prints the block, on stdout."""
    if as_json:
        print_result(description)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, version in description["versions"].items():
        low, new = TESTED.get(name, ("", ""))
        note = f"  (not tested: {low} to {new} are)" if name in description["untested"] else ""
        table.add_row(name, f"{version}{note}")
    gibibytes = f"{description['memory_bytes'] / (1 << 30):.0f} GiB"
    table.add_row("platform", description["platform"])
    table.add_row("machine", f"{description['machine']}, {description['cores']} cores, {gibibytes}")
    built = description["torch"]
    if built["problem"]:
        table.add_row("torch", f"cannot be loaded: {built['problem']}")
    else:
        build = f"CUDA {built['cuda']}" if built["cuda"] else f"ROCm {built['hip']}" if built["hip"] else "CPU"
        table.add_row("torch built for", f"{build}; {built['threads']} threads, {built['cpu']}")
        gpus = [f"{gpu['name']}, {gpu['memory_bytes'] >> 30} GiB, {gpu['capability']}" for gpu in built["gpus"]]
        table.add_row("GPUs", "; ".join(gpus) or "none")
    for name, value in description["variables"].items():
        table.add_row(name, value)
    new_console(narrow=True).print(table)
