"""What a journal's losses depend on: weights, tokens, how the model is run, and the code that runs it."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import torch

from ... import __version__
from ...calibrate.frozen import token_sha256
from ...dsa.checkpoint.load import compute_dtype
from ...dsa.long.backends import Backends, choose
from ...recipes.schema import Recipe
from ...search.run.records import Identity
from ...system import processes
from ...system.versions import computing_versions
from .prepare import Prepared

_PACKAGE = Path(__file__).resolve().parents[2]
# Whatever a loss passes through between the text and the journal.
_ROOMS = ("calibrate/**/*.py", "dsa/**/*.py", "search/**/*.py")
# What only shows or hands on what was measured.
_SHOWING = ("search/report/", "search/export/", "search/run/")
_MODULES = (
    "pattern.py",
    "evaluate.py",
    "commands/search.py",
    "commands/job/prepare.py",
    "commands/job/measure.py",
)


def search_identity(recipe: Recipe, prepared: Prepared) -> Identity:
    """The fields that have to be the same for a journal to be gone on with, those first that explain most.

    Not among them is what a search is after: budget, strategy, pins, baselines. Those decide which losses are
    asked for and change none, so that one journal serves several. Which devices a model is spread over is known
    once it is loaded, and compared then.
    """
    model, windows, checkpoint = prepared.identity, prepared.windows, prepared.checkpoint
    device = processes.this_device().type
    wanted = Backends(recipe.indexer, recipe.attention)
    backends = choose(wanted, checkpoint.selects_tokens, windows.length, device)
    return {
        "config": model.config_sha256,
        "weights_hash": model.weights_hash,
        "weights": model.weights_sha256,
        "remote_code": model.code_sha256,
        "selection_width": model.selection_width,
        "window": windows.length,
        "windows": len(windows.calibration),
        "heldout": len(windows.heldout),
        "seed": recipe.seed,
        "tokens": token_sha256(windows),
        "dtype": str(compute_dtype(checkpoint, recipe.dtype)).removeprefix("torch."),
        "device": device,
        "processor": processor() if device == "cpu" else None,
        "float32_products": float32_products(),
        "indexer": backends.indexer,
        "attention": backends.attention,
        **computing_versions(),
        "indexcache": __version__,
        "code": code_sha256(),
    }


def processor() -> str:
    """The CPU and the instructions that torch uses of it: libraries pick their products' code by both."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:  # no Linux
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def float32_products() -> str:
    """How exactly products of float32 are asked for."""
    override = os.environ.get("NVIDIA_TF32_OVERRIDE")
    return torch.get_float32_matmul_precision() + (f", NVIDIA_TF32_OVERRIDE={override}" if override else "")


def code_sha256() -> str:
    """SHA-256 over the names and contents of the package's own files that losses depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in (*_ROOMS, *_MODULES) for path in _PACKAGE.glob(pattern)}):
        name = path.relative_to(_PACKAGE).as_posix()
        if not name.startswith(_SHOWING):
            digest.update(f"{name}:".encode() + path.read_bytes())
    return digest.hexdigest()
