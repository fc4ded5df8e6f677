"""What a journal's losses depend on: weights, tokens, how the model is run, and the code that runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from . import __version__
from .calibrate.frozen import token_sha256
from .dsa import processes
from .preparation import Prepared
from .recipes.schema import Recipe
from .search.journal import Identity
from .versions import computing_versions

_PACKAGE = Path(__file__).resolve().parent
# Whatever a loss passes through between the text and the journal.
_ROOMS = ("calibrate/*.py", "dsa/**/*.py", "search/*.py")
_MODULES = ("pattern.py", "groups.py", "preparation.py", "measuring.py", "workflow.py")


def search_identity(recipe: Recipe, prepared: Prepared) -> Identity:
    """The fields that have to be the same for a journal to be gone on with, those first that explain most.

    Not among them is what a search is after: budget, strategy, baselines. Those decide which losses are
    asked for and change none, so that one journal serves several.
    """
    model, windows = prepared.identity, prepared.windows
    pinned, device = prepared.method.pinned, processes.this_device().type
    return {
        "config": model.config_sha256,
        "weights": model.weights_sha256,
        "selection_width": model.selection_width,
        "window": windows.length,
        "windows": len(windows.calibration),
        "heldout": len(windows.heldout),
        "seed": recipe.seed,
        "tokens": token_sha256(windows),
        "dtype": recipe.dtype,
        "device": device,
        "processor": torch.backends.cpu.get_cpu_capability() if device == "cpu" else None,
        "indexer": recipe.indexer,
        "attention": recipe.attention,
        "pinned_layers": [model.site_layers[site] for site in pinned],
        **computing_versions(),
        "indexcache": __version__,
        "code": code_sha256(),
    }


def code_sha256() -> str:
    """SHA-256 over the names and contents of the package's own files that losses depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in (*_ROOMS, *_MODULES) for path in _PACKAGE.glob(pattern)}):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}:".encode() + path.read_bytes())
    return digest.hexdigest()
