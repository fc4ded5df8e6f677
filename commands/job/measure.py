"""Loads a checkpoint so that it can be measured: backends chosen and installed, memory checked, states kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...calibrate.windows import Windows
from ...dsa.checkpoint.config import Checkpoint
from ...dsa.checkpoint.load import Placement, compute_dtype, device_kinds, load_model
from ...dsa.checkpoint.weights import weights_bytes
from ...dsa.checks.selfcheck import check_backends, check_tokens
from ...dsa.long.backends import Backends, choose, install
from ...dsa.long.capacity import check_fits, free_memory, longest_window, path_budget, row_bytes, rows_that_fit
from ...dsa.model.evaluator import Evaluator
from ...dsa.model.losses import PatternLosses
from ...dsa.model.paths import PathMemory
from ...evaluate import CALIBRATION, HELD_OUT
from ...recipes.schema import Recipe
from ...search.plan.schema import RunIdentity
from ...system import processes
from ...system.console import Reporter
from ...system.versions import library_versions

# Tokens: a stock layer's time there grows with their square.
_MOST_TRIED_ON_CPU = 8192


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and what runs its indexers and attention."""

    model: Any
    backends: Backends


def load(
    checkpoint: Checkpoint,
    dtype: str,
    placement: Placement,
    wanted: Backends,
    length: int,
    reporter: Reporter,
    tried_on: Sequence[int] = (),
) -> Loaded:
    """Loads ``checkpoint`` for windows of ``length`` tokens; what cannot fit is said before.

    Args:
        checkpoint: what to load.
        dtype: see ``load_model``.
        placement: likewise.
        wanted: what is to run indexers and attention, ``auto`` included.
        length: tokens per window.
        reporter: told of progress.
        tried_on: tokens on which what is to run is held against the model's own code; none to leave that out.

    Raises:
        SettingError: a backend that the family does not have.
        WindowError: such windows do not fit; names the length that would.
        ModelError: see ``load_model``.
    """
    backends = check_fits_here(checkpoint, dtype, placement, wanted, length, reporter)
    reporter.doing(f"loading {checkpoint.model_id}")
    model = load_model(checkpoint, dtype, placement)
    if tried_on and backends != Backends():
        tokens = _tried_length(checkpoint, model, length)
        reporter.doing(
            f"holding {backends.indexer} indexers and {backends.attention} attention against the model's own"
        )
        check_backends(model, checkpoint, backends, tried_on, tokens)
    install(model, backends, reporter.warn)
    return Loaded(model, backends)


def _tried_length(checkpoint: Checkpoint, model: Any, length: int) -> int:
    """The window's, or as much of it as the model's own code has memory and, on a CPU, time for."""
    device = processes.this_device()
    on_gpu, together = device.type == "cuda", processes.process_count()
    free = free_memory(device) // (1 if on_gpu else together) // 2
    fits = longest_window(checkpoint.config, length + 1, model.dtype.itemsize, Backends(), free, on_gpu)
    if not on_gpu:
        fits = min(fits, _MOST_TRIED_ON_CPU)
    return min(length, max(fits, check_tokens(checkpoint.selection_width)))


def check_fits_here(
    checkpoint: Checkpoint, dtype: str, placement: Placement, wanted: Backends, length: int, reporter: Reporter
) -> Backends:
    """What will run, if windows of ``length`` tokens fit here; warns where memory grows fast.

    Raises:
        SettingError: a backend that the family does not have.
        WindowError: they do not fit; names the length that would.
    """
    device = processes.this_device()
    backends = choose(wanted, checkpoint.selects_tokens, length, device.type)
    on_gpu, size = device.type == "cuda", compute_dtype(checkpoint, dtype).itemsize
    free = free_memory(device) // (1 if on_gpu else processes.process_count())
    if placement.device_map is None:  # with one, accelerate places weights where there is room
        free -= weights_bytes(checkpoint, size)
    check_fits(checkpoint.config, length, size, backends, free, on_gpu)
    if not checkpoint.selects_tokens:
        longest = longest_window(checkpoint.config, 1 << 24, size, backends, free, on_gpu)
        if longest < 2 * length:
            reporter.warn(
                f"{checkpoint.text.model_type} has transformers' own indexers and attention only: windows of "
                f"up to about {longest} tokens fit here"
            )
    return backends


def evaluator(
    loaded: Loaded, checkpoint: Checkpoint, windows: Windows, max_rows: int | None, reporter: Reporter
) -> Evaluator:
    """Measures patterns on ``windows``, keeping as many states as the free memory allows."""
    together, width, model = processes.process_count(), checkpoint.selection_width, loaded.model
    device = processes.this_device()
    own_windows = -(-len(windows.calibration) // together)
    memory = PathMemory(checkpoint.site_layers, own_windows, path_budget(device, together))
    size = row_bytes(checkpoint.config, windows.length, model.dtype.itemsize, width)
    return Evaluator(
        PatternLosses(model, checkpoint.site_layers, blind=width, memory=memory),
        {name: windows.group(name).tolist() for name in (CALIBRATION, HELD_OUT)},
        max_rows or rows_that_fit(device, size, together),
        on_window=lambda patterns: reporter.advance(patterns * together),
        told=reporter.warn,
    )


def load_for(
    recipe: Recipe, checkpoint: Checkpoint, length: int, reporter: Reporter, tried_on: Sequence[int] = ()
) -> Loaded:
    wanted = Backends(recipe.indexer, recipe.attention)
    placement = Placement(recipe.device_map, recipe.offload_folder)
    return load(checkpoint, recipe.dtype, placement, wanted, length, reporter, tried_on)


def run_identity(loaded: Loaded) -> RunIdentity:
    return RunIdentity(
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=device_kinds(loaded.model),
        threads=processes.thread_count(),
        indexer=loaded.backends.indexer,
        attention=loaded.backends.attention,
        versions=library_versions(),
    )
