"""Loads a checkpoint so that it can be measured: backends chosen and installed, memory checked, states kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...calibrate.windows import Windows
from ...dsa.checkpoint.config import Checkpoint
from ...dsa.checkpoint.load import FETCHED, Placement, compute_dtype, device_kinds, load_model
from ...dsa.checkpoint.stored.weights import StoredWeights, weights_bytes
from ...dsa.checks.selfcheck import check_backends, check_tokens
from ...dsa.long.backends import Backends, choose, install
from ...dsa.long.capacity import check_fits, free_memory, longest_window, path_budget, row_bytes, rows_that_fit
from ...dsa.model.evaluator import Evaluator
from ...dsa.model.losses import PatternLosses
from ...dsa.model.paths import PathMemory
from ...errors import ModelError
from ...evaluate import CALIBRATION, HELD_OUT
from ...search.plan.schema import RunIdentity
from ...system import processes
from ...system.console import Reporter
from ...system.versions import computing_versions, library_versions

# Tokens: a stock layer's time there grows with their square.
_MOST_TRIED_ON_CPU = 8192


@dataclass(frozen=True)
class Running:
    """How a model is run, decided before it is loaded.

    Args:
        dtype: as asked for, ``auto`` included.
        computes_in: the type that comes of it, e.g. ``bfloat16``.
        placement: where weights go.
        backends: what runs indexers and attention.
        max_rows: windows x patterns in memory together; None leaves it to the free memory.
    """

    dtype: str
    computes_in: str
    placement: Placement
    backends: Backends
    max_rows: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, how it runs, and what it was loaded from."""

    model: Any
    checkpoint: Checkpoint
    running: Running


def running_on(
    checkpoint: Checkpoint,
    dtype: str,
    placement: Placement,
    wanted: Backends,
    length: int,
    max_rows: int | None = None,
) -> Running:
    """How ``checkpoint`` is run here on windows of ``length`` tokens; ``auto`` is decided.

    Raises:
        SettingError: a backend that the family does not have.
    """
    computes_in = str(compute_dtype(checkpoint, dtype)).removeprefix("torch.")
    backends = choose(wanted, checkpoint.selects_tokens, length, processes.process_device().type)
    return Running(dtype, computes_in, placement, backends, max_rows)


def load(
    checkpoint: Checkpoint,
    running: Running,
    length: int,
    reporter: Reporter,
    tried_on: Sequence[int] = (),
    weights: StoredWeights | None = None,
    ran: RunIdentity | None = None,
    quantiser: Any = None,
) -> Loaded:
    """Loads ``checkpoint`` for windows of ``length`` tokens; what cannot fit is said before.

    Args:
        checkpoint: what to load.
        running: how it is to run.
        length: tokens per window.
        reporter: told of progress.
        tried_on: tokens on which what is to run is held against the model's own code; none to leave that out.
        weights: of the checkpoint, where they were looked for already.
        ran: how it ran when this was tried before; not tried again where device and versions are the same.
        quantiser: for the format of the weights, where that was checked already.

    Raises:
        WindowError: such windows do not fit; names the length that would.
        ModelError: see ``load_model``.
    """
    check_fits_here(checkpoint, running, length, reporter, weights)
    reporter.doing(f"loading {checkpoint.model_id}")
    backends = running.backends
    model = load_model(checkpoint, running.dtype, running.placement, weights, quantiser)
    if tried_on and backends != Backends() and not (ran is not None and _runs_as(ran, model)):
        tokens = _tried_length(checkpoint, model, length)
        reporter.doing(
            f"holding {backends.indexer} indexers and {backends.attention} attention against the model's own"
        )
        try:
            check_backends(model, checkpoint, backends, tried_on, tokens)
        except ModelError as error:
            if ran is not None and "--indexer" in error.hint:  # what ran is the plan's, and no option here
                versions = f"transformers {ran.versions.get('transformers')} and torch {ran.versions.get('torch')}"
                error.hint = (
                    f"the plan ran with {versions} on {ran.device}: measure it there, or search again here"
                )
            raise
    install(model, backends, reporter.warn)
    return Loaded(model, checkpoint, running)


def _runs_as(ran: RunIdentity, model: Any) -> bool:
    """Whether ``model`` is computed by the device and the versions of an earlier run."""
    same_versions = all(
        ran.versions.get(name) == number for name, number in computing_versions().items() if name != "python"
    )
    return same_versions and ran.device.removesuffix(FETCHED) == device_kinds(model).removesuffix(FETCHED)


def _tried_length(checkpoint: Checkpoint, model: Any, length: int) -> int:
    """The window's, or as much as the model's own code has memory and, on a CPU, time for on every process."""
    device = processes.process_device()
    on_gpu, together = device.type == "cuda", processes.process_count()
    free = free_memory(device) // (1 if on_gpu else together) // 2
    fits = longest_window(checkpoint.config, length + 1, model.dtype.itemsize, Backends(), free, on_gpu)
    if not on_gpu:
        fits = min(fits, _MOST_TRIED_ON_CPU)
    tokens = min(length, max(fits, check_tokens(checkpoint.selection_width)))
    return min(processes.merge({processes.process_index(): tokens}).values())


def check_fits_here(
    checkpoint: Checkpoint, running: Running, length: int, reporter: Reporter, weights: StoredWeights | None
) -> None:
    """Checks that windows of ``length`` tokens fit here; warns where memory grows fast.

    Raises:
        WindowError: they do not fit; names the length that would.
    """
    device = processes.process_device()
    on_gpu, size = device.type == "cuda", compute_dtype(checkpoint, running.dtype).itemsize
    free = free_memory(device) // (1 if on_gpu else processes.process_count())
    if running.placement.device_map is None:  # with one, accelerate places weights where there is room
        free -= weights_bytes(checkpoint, size, weights)
    check_fits(checkpoint.config, length, size, running.backends, free, on_gpu)
    if not checkpoint.selects_tokens:
        longest = longest_window(checkpoint.config, 1 << 24, size, running.backends, free, on_gpu)
        if longest < 2 * length:
            reporter.warn(
                f"{checkpoint.text.model_type} has transformers' own indexers and attention only: windows of "
                f"up to about {longest} tokens fit here"
            )


def evaluator(loaded: Loaded, windows: Windows, reporter: Reporter) -> Evaluator:
    """Measures patterns on ``windows``, keeping as many states as the free memory allows."""
    checkpoint, model, together = loaded.checkpoint, loaded.model, processes.process_count()
    width = checkpoint.selection_width
    device = processes.process_device()
    share = -(-len(windows.calibration) // together)
    memory = PathMemory(checkpoint.site_layers, share, path_budget(device, together))
    size = row_bytes(checkpoint.config, windows.length, model.dtype.itemsize, width)
    return Evaluator(
        PatternLosses(model, checkpoint.site_layers, blind=width, memory=memory),
        {name: windows.group(name).tolist() for name in (CALIBRATION, HELD_OUT)},
        loaded.running.max_rows or rows_that_fit(device, size, together),
        on_window=lambda patterns: reporter.advance(patterns * together),
        on_shortage=reporter.warn,
    )


def run_identity(loaded: Loaded) -> RunIdentity:
    """What a plan says of how its model ran."""
    return RunIdentity(
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=device_kinds(loaded.model),
        threads=processes.thread_count(),
        indexer=loaded.running.backends.indexer,
        attention=loaded.running.backends.attention,
        versions=library_versions(),
    )
