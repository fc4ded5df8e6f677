"""What identifies a checkpoint, and what a journal's losses depend on: weights, tokens, how it runs, and code."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Literal

import torch

from ...dsa.checkpoint.architectures import remote_code_sha256
from ...dsa.checkpoint.config import Checkpoint, config_sha256, has_nested_config
from ...dsa.checkpoint.dtypes import dtype_name
from ...dsa.checkpoint.stored.weights import StoredWeights, WeightsHash, identify_weights
from ...errors import IdentityError
from ...search.plan.schema import ModelIdentity, TokenIdentity
from ...search.run.records import Identity
from ...system import processes
from ...system.versions import computing_versions
from ...version import __version__
from .measure import Running

_PACKAGE = Path(__file__).resolve().parents[2]
# Whatever a loss passes through between the text and the journal.
_ROOMS = ("calibrate/**/*.py", "dsa/**/*.py", "search/**/*.py")
# What only shows or hands on what was measured. Of the run's room, records.py and replay.py stay in: they decide
# which losses are measured and which are taken from the journal.
_SHOWING = (
    "search/report/",
    "search/export/",
    "search/card/",
    "search/upkeep/",
    "search/plan/place.py",
    "search/run/__init__.py",
    "search/run/folder.py",
    "search/run/journal.py",
)
_MODULES = (
    "pattern.py",
    "evaluate.py",
    "commands/search.py",
    "commands/job/prepare.py",
    "commands/job/measure.py",
)


def model_identity(
    checkpoint: Checkpoint, weights: StoredWeights, hash_kind: Literal["auto"] | WeightsHash
) -> ModelIdentity:
    """What a plan says of the checkpoint it is for; its weights are hashed in the way ``hash_kind``."""
    kind, digest = identify_weights(weights, hash_kind)
    return ModelIdentity(
        id=checkpoint.model_id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        model_type=checkpoint.config.model_type,
        layers=checkpoint.layers,
        site_layers=list(checkpoint.site_layers),
        shared_layers=list(checkpoint.shared_layers),
        selection_width=checkpoint.selection_width,
        config_sha256=config_sha256(checkpoint),
        weights_hash=kind,
        weights_sha256=digest,
        code_sha256=remote_code_sha256(checkpoint.config, checkpoint.folder, checkpoint.trust.remote_code),
        nested_config=has_nested_config(checkpoint),
        positions=checkpoint.longest,
    )


def check_same_model(planned: ModelIdentity, present: ModelIdentity) -> None:
    """Compares a plan's checkpoint with the one at hand.

    Raises:
        IdentityError: names the first field that differs, and both values.
    """
    for field in ("model_type", "layers", "site_layers", "config_sha256", "weights_sha256", "code_sha256"):
        old, new = getattr(planned, field), getattr(present, field)
        if old != new:
            raise IdentityError(
                f"the plan was made for another model than {present.id!r}: {field} is {_short(new)}, "
                f"the plan has {_short(old)}",
                hint="search this checkpoint, or give the plan's own with --model",
            )


def _short(value: object) -> str:
    text = f"{len(value)} layers" if isinstance(value, list) else str(value)
    return text[:12] if len(text) == 64 else text


def search_identity(model: ModelIdentity, tokens: TokenIdentity, running: Running, weighs_keys: bool) -> Identity:
    """The fields that have to be the same for a journal to be gone on with, those first that explain most.

    Not among them is what a search is after: budget, strategy, pins, baselines. Those decide which losses are
    asked for and change none, so that one journal serves several. Nor is where weights wait and how they come to
    the device, as losses are equal bit for bit. Which devices compute is known once a model is loaded, and
    compared then.
    """
    device = processes.process_device().type
    return {
        "config": model.config_sha256,
        "weights_hash": model.weights_hash,
        "weights": model.weights_sha256,
        "remote_code": model.code_sha256,
        "selection_width": model.selection_width,
        "window": tokens.window,
        "windows": tokens.windows,
        "heldout": tokens.heldout_windows,
        "seed": tokens.seed,
        "tokens": tokens.sha256,
        "key_tokens": weighs_keys,
        "weights_run": running.weights,
        "dtype": dtype_name(running.computes_in),
        "device": device,
        "processor": processor() if device == "cpu" else None,
        "float32_products": float32_products(),
        "indexer": running.backends.indexer,
        "attention": running.backends.attention,
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
