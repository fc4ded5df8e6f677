"""Loads a checkpoint so that it can be measured: backends chosen and installed, memory checked, states kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...calibrate.windows import WindowGroup, Windows
from ...dsa.checkpoint.config import Checkpoint
from ...dsa.checkpoint.dtypes import compute_dtype, dtype_name
from ...dsa.checkpoint.load import device_kinds
from ...dsa.checkpoint.stored.weights import StoredWeights
from ...dsa.checks.selfcheck import check_backends, check_tokens
from ...dsa.distil.candidates import StudentEvaluator, Students
from ...dsa.distil.losses import DistilledLosses
from ...dsa.distil.segments import Segment
from ...dsa.long.backends import Backends, choose, install
from ...dsa.long.capacity import (
    check_fits,
    free_memory,
    layer_bytes,
    longest_window,
    path_budget,
    process_memory,
    reference_budget,
    row_bytes,
    rows_that_fit,
)
from ...dsa.model.evaluator import Evaluator
from ...dsa.model.losses import PatternLosses
from ...dsa.model.states.paths import PathMemory
from ...dsa.model.tail import Window
from ...dsa.stream.footprint import footprint
from ...dsa.stream.formats.recognise import quantised_run
from ...dsa.stream.layers import stream_of
from ...dsa.stream.load import load_measured, loads_whole
from ...dsa.stream.room import Room, least_on_device, making_bytes
from ...errors import ModelError, WindowError
from ...evaluate import HELD_OUT
from ...search.machine.machine import HOST_SHARE, disk_warning
from ...search.plan.schema import RunIdentity
from ...system import processes
from ...system.console import Reporter, byte_count
from ...system.versions import computing_versions, library_versions

# Of the free memory of a device.
_USABLE = 0.95
# Rows of a sweep that the device has room for beside the one that computes.
_ROWS_BESIDE = 4
# Tokens: a stock layer's time there grows with their square.
_MOST_TRIED_ON_CPU = 8192


@dataclass(frozen=True)
class Running:
    """How a model is run, decided before it is loaded.

    Args:
        dtype: as asked for, ``auto`` included.
        computes_in: the type that comes of it.
        room: that weights may take.
        backends: what runs indexers and attention.
        max_rows: windows x patterns in memory together; None leaves it to the free memory.
        weights: how quantised weights run, in words; None where they are plain.
    """

    dtype: str
    computes_in: torch.dtype
    room: Room
    backends: Backends
    max_rows: int | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, how it runs, and what it was loaded from."""

    model: Any
    checkpoint: Checkpoint
    running: Running


def running_on(
    checkpoint: Checkpoint,
    dtype: str,
    room: Room,
    request: Backends,
    length: int,
    max_rows: int | None = None,
) -> Running:
    """How ``checkpoint`` is run here on windows of ``length`` tokens; ``auto`` is decided.

    Raises:
        SettingError: a backend that the family does not have.
        ModelError: a quantization_config that says no format.
    """
    computes_in = compute_dtype(checkpoint, dtype)
    backends = choose(request, checkpoint.selects_tokens, length, processes.process_device().type)
    return Running(dtype, computes_in, room, backends, max_rows, quantised_run(checkpoint))


def load(
    checkpoint: Checkpoint,
    weights: StoredWeights,
    running: Running,
    length: int,
    reporter: Reporter,
    trial_tokens: Sequence[int] = (),
    past_run: RunIdentity | None = None,
) -> Loaded:
    """Loads ``checkpoint`` for windows of ``length`` tokens; what cannot fit is said before.

    Args:
        checkpoint: what to load.
        weights: of it, looked for once.
        running: how it is to run.
        length: tokens per window.
        reporter: told of progress.
        trial_tokens: tokens on which what is to run is held against the model's own code; none to leave that out.
        past_run: how it ran when this was tried before; not tried again where code, device and versions are
            the same.

    Raises:
        WindowError: such windows do not fit; names the length that would.
        ModelError: see ``load_model``.
    """
    check_fits_here(checkpoint, weights, running, length, reporter)
    if running.room != Room() and loads_whole(checkpoint, weights):
        reporter.warn("transformers loads these weights whole: --max-memory and --max-host-memory do nothing")
    reporter.doing(f"loading {checkpoint.model_id}")
    backends = running.backends
    model = load_measured(checkpoint, weights, running.dtype, _room(checkpoint, running, length))
    _say_what_streams(model, reporter)
    repeats = past_run is not None and _same_run(past_run, model, backends)
    if trial_tokens and backends != Backends() and not repeats:
        tokens = _tried_length(checkpoint, model, length)
        reporter.doing(
            f"holding {backends.indexer} indexers and {backends.attention} attention against the model's own"
        )
        try:
            check_backends(model, checkpoint, backends, trial_tokens, tokens)
        except ModelError as error:
            if past_run is not None and "--indexer" in error.hint and not _same_code(past_run, backends):
                error.hint = "lower --window: shorter windows run as the search ran"
            elif past_run is not None and "--indexer" in error.hint:  # what ran is the plan's, and no option here
                versions = " and ".join(
                    f"{name} {past_run.versions.get(name)}" for name in ("transformers", "torch")
                )
                error.hint = (
                    f"the plan ran with {versions} on {past_run.device}: measure it there, or search again here"
                )
            raise
    install(model, backends, reporter.warn)
    return Loaded(model, checkpoint, running)


def _room(checkpoint: Checkpoint, running: Running, length: int) -> Room:
    """What weights may take: as asked for, else what windows of ``length`` tokens and a few rows leave free."""
    device, together = processes.process_device(), processes.process_count()
    on_gpu, size = device.type == "cuda", running.computes_in.itemsize
    of_device, of_host = running.room.device, running.room.host
    if of_device is None:
        needed = layer_bytes(checkpoint.config, length, size, running.backends, on_gpu)
        beside = _ROWS_BESIDE * row_bytes(checkpoint.config, length, size, checkpoint.selection_width)
        of_device = int(_USABLE * process_memory(device, together)) - needed
        # Rows can wait in host memory: a layer that moves does not have to give way to them.
        if of_device - beside >= least_on_device(footprint(checkpoint, size)):
            of_device -= beside
    if of_host is None:
        # Where the host's memory is the device, what does not fit there comes from files.
        of_host = int(HOST_SHARE * free_memory(torch.device("cpu"))) if on_gpu else 0
    return Room(max(0, of_device), of_host * processes.host_count())


def _say_what_streams(model: Any, reporter: Reporter) -> None:
    """Where the layers come from that do not stay on the device, and how long files take for a sweep."""
    if (stream := stream_of(model)) is None:
        return
    places = ((stream.shared, "all devices"), (stream.host, "host memory"), (stream.files, "files"))
    sources = [f"{len(numbers)} from {place}" for numbers, place in places if numbers]
    reporter.say(
        f"{stream.streamed} of {stream.layers} layers come to the device for each sweep, "
        f"{byte_count(stream.sweep_bytes)} as stored: {' and '.join(sources)}"
    )
    if (line := disk_warning(stream.file_bytes, stream.file_rate)) is not None:
        reporter.warn(line)


def _same_code(past_run: RunIdentity, backends: Backends) -> bool:
    """Whether an earlier run had the same code for indexers and attention."""
    return (past_run.indexer, past_run.attention) == (backends.indexer, backends.attention)


def _same_run(past_run: RunIdentity, model: Any, backends: Backends) -> bool:
    """Whether ``model`` is computed by the code, the device and the versions of an earlier run."""
    versions = computing_versions().items()
    same_versions = all(past_run.versions.get(name) == number for name, number in versions if name != "python")
    same_device = past_run.device == device_kinds(model)
    return _same_code(past_run, backends) and same_versions and same_device


def _tried_length(checkpoint: Checkpoint, model: Any, length: int) -> int:
    """The window's, or as much as the model's own code has memory and, on a CPU, time for on every process."""
    device = processes.process_device()
    on_gpu = device.type == "cuda"
    free = process_memory(device, processes.process_count()) // 2
    fits = longest_window(checkpoint.config, length + 1, model.dtype.itemsize, Backends(), free, on_gpu)
    if not on_gpu:
        fits = min(fits, _MOST_TRIED_ON_CPU)
    tokens = min(length, max(fits, check_tokens(checkpoint.selection_width)))
    # The least of all processes: they compare on one window, so that all of them agree or none does.
    return processes.least(tokens)


def check_fits_here(
    checkpoint: Checkpoint, weights: StoredWeights, running: Running, length: int, reporter: Reporter
) -> None:
    """Checks that windows of ``length`` tokens fit here; warns where memory grows fast.

    Raises:
        WindowError: they do not fit; names the length that would.
    """
    device = processes.process_device()
    on_gpu, size = device.type == "cuda", running.computes_in.itemsize
    free = process_memory(device, processes.process_count())
    free -= least_on_device(footprint(checkpoint, size))
    check_fits(checkpoint.config, length, size, running.backends, free, on_gpu)
    if not checkpoint.selects_tokens:
        # 1 << 24 tokens, more than any window has.
        longest = longest_window(checkpoint.config, 1 << 24, size, running.backends, free, on_gpu)
        if longest < 2 * length:
            reporter.warn(
                f"{checkpoint.text.model_type} has transformers' own indexers and attention only: windows of "
                f"up to about {longest} tokens fit here"
            )


def check_positions(checkpoint: Checkpoint, length: int, subject: str, hint: str) -> None:
    """Refuses more tokens than the model has positions, where its config says how many.

    Args:
        checkpoint: whose positions they are.
        length: in tokens.
        subject: what has that length, with its verb: "windows of 8192 tokens are".
        hint: how to mend it.

    Raises:
        WindowError: they are more.
    """
    longest = checkpoint.longest
    if longest is not None and length > longest:
        raise WindowError(f"{subject} longer than the model's {longest} positions", hint=hint)


def evaluator(
    loaded: Loaded,
    windows: Windows,
    reporter: Reporter,
    key_groups: Collection[str] = (HELD_OUT,),
    distilled: Mapping[Segment, Mapping[str, torch.Tensor]] | None = None,
    students: Students | None = None,
) -> Evaluator:
    """Measures patterns on ``windows``, keeping as many states as the free memory allows.

    Args:
        loaded: the model.
        windows: of all groups.
        reporter: told of progress.
        key_groups: whose windows' loss on key tokens is measured too, which takes two more passes a window.
        distilled: parameters of distilled indexers by segment, which a ``DistilledPattern`` runs; no states are
            kept then.
        students: distilled for every pattern that is measured.
    """
    checkpoint, model, together = loaded.checkpoint, loaded.model, processes.process_count()
    width = checkpoint.selection_width
    device = processes.process_device()
    free = max(0, process_memory(device, together) - _taken_later(loaded, windows.length))
    size = row_bytes(checkpoint.config, windows.length, model.dtype.itemsize, width)
    rows = rows_that_fit(free, size)
    settings: dict[str, Any] = {
        "blind": width,
        "reference_budget": reference_budget(together),
        "row_budget": rows * size,
    }
    if distilled is None:
        share = -(-len(windows.calibration) // together)
        settings["memory"] = PathMemory(checkpoint.site_layers, share, path_budget(free))
    groups = {name: _windows(name, group, name in key_groups) for name, group in windows.groups.items()}
    watched: dict[str, Any] = {
        "max_rows": loaded.running.max_rows or rows,
        "on_window": lambda patterns: reporter.advance(patterns * together),
        "on_shortage": reporter.warn,
    }
    if students is not None:
        measured = DistilledLosses(model, checkpoint.site_layers, students.parameters, **settings)
        return StudentEvaluator(students, measured, groups, **watched)
    if distilled is not None:
        return Evaluator(DistilledLosses(model, checkpoint.site_layers, distilled, **settings), groups, **watched)
    return Evaluator(PatternLosses(model, checkpoint.site_layers, **settings), groups, **watched)


def _taken_later(loaded: Loaded, length: int) -> int:
    """Bytes that are free now, and taken when a layer comes to the device and works; 0 where all layers stay."""
    checkpoint, size = loaded.checkpoint, loaded.model.dtype.itemsize
    sizes = None if stream_of(loaded.model) is None else footprint(checkpoint, size)
    if sizes is None:
        return 0
    on_gpu = processes.process_device().type == "cuda"
    return making_bytes(sizes) + layer_bytes(checkpoint.config, length, size, loaded.running.backends, on_gpu)


def _windows(name: str, group: WindowGroup, weighs_keys: bool) -> list[Window]:
    answers = (
        [None] * len(group.ids) if group.answers is None else [row.nonzero()[0].tolist() for row in group.answers]
    )
    return [
        Window((name, number), ids, labels, weighs_keys)
        for number, (ids, labels) in enumerate(zip(group.ids.tolist(), answers, strict=True))
    ]


def run_identity(loaded: Loaded) -> RunIdentity:
    """What a plan says of how its model ran."""
    return RunIdentity(
        dtype=dtype_name(loaded.model.dtype),
        device=device_kinds(loaded.model),
        threads=processes.thread_count(),
        indexer=loaded.running.backends.indexer,
        attention=loaded.running.backends.attention,
        versions=library_versions(),
        weights=loaded.running.weights,
    )
