"""The bench command: how long a prefill takes under a plan and all full, at several lengths, and its table."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from ..dsa.checkpoint.config import Checkpoint, config_sha256
from ..dsa.checkpoint.dtypes import dtype_name
from ..dsa.checkpoint.load import Placement, device_kinds, random_model
from ..dsa.chunks import out_of_memory
from ..dsa.long.backends import Backends, install
from ..dsa.long.capacity import free_memory, layer_bytes, longest_window
from ..dsa.stream.load import load_whole
from ..dsa.stream.room import Room
from ..errors import MeasurementError, SettingError
from ..pattern import Pattern
from ..search.price.prefills import PrefillPoint, PrefillRecord, PrefillTime, prefill_file
from ..search.run.folder import render_beside
from ..system import processes
from ..system.console import Reporter, new_console, print_line, print_table
from ..system.exits import print_result
from ..system.files import check_writable, write_atomically
from ..system.versions import library_versions
from .indexer_sizes import keep_sizes
from .job.measure import Running, check_positions, running_on
from .job.planned import PlannedModel
from .job.settings import placement_of

if TYPE_CHECKING:
    from ..dsa.model.prefill import PrefillClock


_DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class BenchRequest:
    """What to time.

    Args:
        contexts: lengths in tokens; none for a default.
        repeats: prefills per length and pattern, after one that warms up.
        dtype: to compute in; None for the plan's.
        placement: where weights go.
        backends: what runs indexers and attention, ``auto`` included.
        random_weights: build the model from its config alone.
        beyond_positions: allow lengths above the model's positions.
    """

    contexts: Sequence[int]
    repeats: int
    dtype: str | None
    placement: Placement
    backends: Backends
    random_weights: bool
    beyond_positions: bool

    @classmethod
    def from_fields(
        cls, contexts: Sequence[int], repeats: int, random_weights: bool, fields: Mapping[str, Any]
    ) -> BenchRequest:
        """Of the command's options; ``fields`` are those that recipes have too."""
        backends = Backends(fields.get("indexer", "auto"), fields.get("attention", "auto"))
        beyond = fields.get("beyond_positions", False)
        return cls(contexts, repeats, fields.get("dtype"), placement_of(fields), backends, random_weights, beyond)


def bench(planned: PlannedModel, path: Path, request: BenchRequest, reporter: Reporter) -> PrefillRecord:
    """Times prefills, writes them beside the plan in the file ``path`` and renders its report again.

    Raises:
        IdentityError: the model's sites are not the plan's.
        MeasurementError: not even the shortest length fits.
        IndexcacheError: one of its other kinds.
    """
    if processes.process_count() > 1:
        raise SettingError("bench times one model on one process", hint="run it without accelerate launch")
    plan, checkpoint = planned.plan, planned.checkpoint
    planned.check_layout()
    check_writable(path.parent)
    request = replace(request, contexts=_contexts(checkpoint, request))
    # One choice for all lengths, so that their times compare.
    dtype = request.dtype or plan.run.dtype
    running = running_on(checkpoint, dtype, Room(), request.backends, max(request.contexts))
    backends = running.backends
    model = model_to_time(planned, running, request.placement, request.random_weights, reporter)
    install(model, backends, reporter.warn)
    record = PrefillRecord(
        **what_is_timed(planned, model, backends, request),
        versions=library_versions(),
        points=_points(model, checkpoint, plan.pattern, backends, request, reporter),
    )
    _check_something_fits(record, checkpoint, model, backends)
    write_atomically(prefill_file(path), record.as_json())
    keep_sizes(path, plan, checkpoint)
    render_beside(plan, path, warn=reporter.warn)
    return record


def what_is_timed(planned: PlannedModel, model: Any, backends: Backends, request: BenchRequest) -> dict[str, Any]:
    """What a record of times says of the pattern, the model and how it runs: the fields of ``TimesRecord``."""
    return {
        "model": planned.checkpoint.model_id,
        "config_sha256": config_sha256(planned.checkpoint),
        "pattern": planned.plan.result.pattern,
        "device": device_kinds(model),
        "dtype": dtype_name(model.dtype),
        "indexer": backends.indexer,
        "attention": backends.attention,
        "random_weights": request.random_weights,
        "repeats": request.repeats,
    }


def _check_something_fits(record: PrefillRecord, checkpoint: Checkpoint, model: Any, backends: Backends) -> None:
    if any(point.all_full and point.plan for point in record.points):
        return
    shortest, device = record.points[0].context, processes.process_device()
    fits = longest_window(
        checkpoint.config, shortest, model.dtype.itemsize, backends, free_memory(device),
        device.type == "cuda",
    )  # fmt: skip
    raise MeasurementError(f"a prefill of {shortest} tokens does not fit", hint=f"--context {fits} should")


def _contexts(checkpoint: Checkpoint, request: BenchRequest) -> list[int]:
    default = min(_DEFAULT_CONTEXT, checkpoint.longest or _DEFAULT_CONTEXT)
    contexts = list(request.contexts) or [default]
    if not request.beyond_positions:
        hint = "lower --context, or allow it with --beyond-positions"
        check_positions(checkpoint, max(contexts), f"a context of {max(contexts)} tokens is", hint)
    return contexts


def model_to_time(
    planned: PlannedModel, running: Running, placement: Placement, random_weights: bool, reporter: Reporter
) -> Any:
    """The plan's model, or one like it with random weights, placed as it is to be timed.

    Raises:
        SettingError: random weights that are to be placed somewhere.
        ModelError: it cannot be loaded.
    """
    checkpoint = planned.checkpoint
    if random_weights:
        if placement != Placement():
            raise SettingError(
                "random weights are made on one device", hint="leave --device-map and --offload-folder out"
            )
        reporter.doing(f"making random weights for {checkpoint.model_id}")
        return random_model(checkpoint, running.dtype)
    reporter.doing(f"loading {checkpoint.model_id}")
    return load_whole(checkpoint, planned.weights, running.dtype, placement)


def _points(
    model: Any,
    checkpoint: Checkpoint,
    pattern: Pattern,
    backends: Backends,
    request: BenchRequest,
    reporter: Reporter,
) -> list[PrefillPoint]:
    from ..dsa.model.prefill import PrefillClock

    clock = PrefillClock(model, checkpoint.site_layers)
    device, points = processes.process_device(), []
    reporter.begin(len(request.contexts), "lengths")
    # The shortest first: what fits is measured before something does not.
    for context in sorted(set(request.contexts)):
        needed = layer_bytes(checkpoint.config, context, model.dtype.itemsize, backends, device.type == "cuda")
        timed = None
        # Estimated first, as a CPU that runs out of memory ends the process and not the measurement.
        if needed <= free_memory(device):
            tokens = any_tokens(checkpoint.vocabulary, context)
            timed = _timed(clock, [Pattern.all_full(len(pattern)), pattern], tokens, request.repeats)
        reporter.advance(1)
        full, plan = timed or (None, None)
        points.append(PrefillPoint(context=context, all_full=full, plan=plan))
        if timed is None:
            reporter.warn(f"a prefill of {context} tokens does not fit here")
    return points


def any_tokens(vocabulary: int, count: int) -> list[int]:
    """Tokens at random, the same each time: repeated ones would have equal scores."""
    chosen = random.Random(0)
    return [chosen.randrange(vocabulary) for _ in range(count)]


def _timed(
    clock: PrefillClock, patterns: Sequence[Pattern], tokens: Sequence[int], repeats: int
) -> list[PrefillTime] | None:
    """None if it does not fit."""
    import torch

    try:
        prefills = clock.time(patterns, tokens, repeats)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        prefills = []
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [PrefillTime(seconds=run.seconds, indexer_share=run.indexer_share) for run in prefills] or None


def show(record: PrefillRecord, path: Path, as_json: bool) -> None:
    """Prints the prefill times of the plan in ``path``, on stdout."""
    if as_json:
        print_result(record.as_json().rstrip())
    else:
        bench_table(record, prefill_file(path))


def bench_table(record: PrefillRecord, path: Path) -> None:
    """Prints prefill times and where they are written, on stdout."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("context", justify="right")
    for name in ("all full, s", "indexers", "this plan, s", "indexers", "speedup"):
        table.add_column(name, justify="right")
    for point in record.points:
        full, plan = point.all_full, point.plan
        if full is None or plan is None:
            table.add_row(f"{point.context:,}", "does not fit", "", "", "", "")
            continue
        shares = [f"{run.indexer_share:.0%}" for run in (full, plan)]
        seconds = [f"{run.seconds:.3g}" for run in (full, plan)]
        table.add_row(f"{point.context:,}", seconds[0], shares[0], seconds[1], shares[1], f"{point.speedup:.2f}x")
    console = new_console()
    weights = ", random weights" if record.random_weights else ""
    print_line(
        console,
        f"prefill of {record.model} on {record.device}, {record.dtype}{weights}; {record.indexer} indexers, "
        f"{record.attention} attention; medians of {record.repeats}",
    )
    print_table(console, table)
    print_line(console, f"written  {path}, and into the report beside it")
