"""The bench command's job: how long a prefill takes under a plan and all full, at several lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dsa import processes
from .dsa.backends import Backends, choose, install
from .dsa.capacity import free_memory, layer_bytes
from .dsa.checkpoint import Checkpoint, open_checkpoint
from .dsa.loading import Placement, device_kinds, load_model, random_model
from .errors import IdentityError, MeasurementError, SettingError
from .files import write_atomically
from .pattern import Pattern
from .preparation import check_positions
from .progress import Reporter
from .search.folder import write_report
from .search.plan import Plan
from .search.prefills import PrefillPoint, PrefillRecord, Timed, prefill_file
from .versions import library_versions

if TYPE_CHECKING:
    from .dsa.prefill import PrefillClock


@dataclass(frozen=True)
class BenchRequest:
    """What to time.

    Args:
        contexts: lengths in tokens.
        repeats: prefills per length and pattern, after one that warms up.
        random_weights: build the model from its config alone: its times do not depend on the values.
        beyond_positions: allow lengths above the model's positions.
    """

    contexts: Sequence[int]
    repeats: int
    dtype: str
    placement: Placement
    wanted: Backends
    random_weights: bool
    beyond_positions: bool
    trust_remote_code: bool


def bench(
    plan: Plan, path: Path, model_id: str | None, request: BenchRequest, reporter: Reporter
) -> PrefillRecord:
    """Times prefills, writes them beside the plan in ``path`` and renders its report again.

    Raises:
        IdentityError: the model's sites are not the plan's.
        MeasurementError: not even the shortest length fits.
        IndexcacheError: one of its other kinds.
    """
    if processes.process_count() > 1:
        raise SettingError("bench times one model on one process", hint="run it without accelerate launch")
    checkpoint = _checkpoint(plan, model_id, request)
    longest = max(request.contexts)
    check_positions(checkpoint, longest, request.beyond_positions, reporter, "--context")
    # One choice for all lengths, so that their times compare.
    backends = choose(request.wanted, checkpoint.selects_tokens, longest, processes.this_device().type)
    model = _model(checkpoint, request, reporter)
    install(model, backends, reporter.warn)
    record = PrefillRecord(
        schema_version=1,
        pattern=plan.result.pattern,
        device=device_kinds(model),
        dtype=str(model.dtype).removeprefix("torch."),
        indexer=backends.indexer,
        attention=backends.attention,
        random_weights=request.random_weights,
        repeats=request.repeats,
        versions=library_versions(),
        points=_points(model, checkpoint, plan.pattern, backends, request, reporter),
    )
    if not any(point.all_full and point.plan for point in record.points):
        raise MeasurementError(
            f"a prefill of {min(request.contexts)} tokens does not fit", hint="give a shorter --context"
        )
    write_atomically(prefill_file(path), record.as_json())
    write_report(path.parent, plan, path.stem)
    return record


def _checkpoint(plan: Plan, model_id: str | None, request: BenchRequest) -> Checkpoint:
    revision = plan.model.revision if model_id is None else None
    checkpoint = open_checkpoint(model_id or plan.model.id, revision, request.trust_remote_code)
    found = (checkpoint.layers, list(checkpoint.site_layers), list(checkpoint.shared_layers))
    if found != (plan.model.layers, plan.model.site_layers, plan.model.shared_layers):
        raise IdentityError(
            f"{checkpoint.model_id!r} has {found[0]} layers and {len(found[1])} sites, not the plan's "
            f"{plan.model.layers} and {len(plan.model.site_layers)} in the same places",
            hint="give the plan's model, or one of the same layout, with --model",
        )
    return checkpoint


def _model(checkpoint: Checkpoint, request: BenchRequest, reporter: Reporter) -> Any:
    if request.random_weights:
        if request.placement.device_map is not None:
            raise SettingError("random weights are made on one device", hint="leave --device-map out")
        reporter.doing(f"making random weights for {checkpoint.model_id}")
        return random_model(checkpoint, request.dtype)
    reporter.doing(f"loading {checkpoint.model_id}")
    return load_model(checkpoint, request.dtype, request.placement)


def _points(
    model: Any,
    checkpoint: Checkpoint,
    pattern: Pattern,
    backends: Backends,
    request: BenchRequest,
    reporter: Reporter,
) -> list[PrefillPoint]:
    from .dsa.prefill import PrefillClock

    clock = PrefillClock(model, checkpoint.site_layers)
    device, points = processes.this_device(), []
    reporter.begin(2 * len(request.contexts), "prefills")
    for context in sorted(set(request.contexts)):
        needed = layer_bytes(checkpoint.config, context, model.dtype.itemsize, backends, device.type == "cuda")
        fits = needed <= free_memory(device)
        timed: list[Timed | None] = []
        for each in (Pattern.all_full(len(pattern)), pattern):
            timed.append(_timed(clock, each, context, request.repeats) if fits else None)
            reporter.advance(1)
        point = PrefillPoint(context=context, all_full=timed[0], plan=timed[1])
        points.append(point)
        if point.speedup is None:
            reporter.warn(f"a prefill of {context} tokens does not fit here")
    return points


def _timed(clock: PrefillClock, pattern: Pattern, context: int, repeats: int) -> Timed | None:
    import torch

    vocabulary = 1000  # any tokens do; every tokenizer has that many
    try:
        took = clock.time(pattern, [number * 7919 % vocabulary for number in range(context)], repeats)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return Timed(seconds=took.seconds, indexer_share=min(1.0, took.indexer_share))
