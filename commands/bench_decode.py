"""The bench command with --decode: how long an output token takes behind a long cache, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ..dsa.checkpoint.config import Checkpoint
from ..dsa.checkpoint.sizes.caches import step_reads
from ..dsa.chunks import out_of_memory
from ..dsa.decode.busy import watch
from ..dsa.long.backends import Backends, install
from ..dsa.stream.room import Room
from ..errors import MeasurementError, SettingError
from ..pattern import Pattern
from ..search.plan.schema import Plan
from ..search.price.decodes import DecodePoint, DecodeRecord, DecodeTime, decode_file
from ..search.report.worth import spread
from ..search.run.folder import render_beside
from ..system import processes
from ..system.console import Reporter, new_console, print_line, print_table
from ..system.exits import print_result
from ..system.files import check_writable, write_atomically
from ..system.versions import library_versions
from .bench import BenchRequest, any_tokens, model_to_time, what_is_timed
from .indexer_sizes import keep_sizes
from .job.measure import Running, check_positions, running_on
from .job.planned import PlannedModel

if TYPE_CHECKING:
    from ..dsa.decode.clock import Decode, DecodeClock

_DEFAULT_CONTEXTS = (8192, 32768, 131072)


@dataclass(frozen=True)
class DecodeRequest:
    """What to time.

    Args:
        common: lengths, repeats, placement and code, as for prefills.
        batches: how many sequences a step is for.
        steps: in each run.
        uniform: whether to time uniform interleaving too.
    """

    common: BenchRequest
    batches: Sequence[int]
    steps: int
    uniform: bool

    @classmethod
    def from_options(cls, common: BenchRequest, batch: str | None, steps: int, uniform: bool) -> DecodeRequest:
        """Of the command's options as they were written.

        Raises:
            SettingError: no numbers of sequences.
        """
        return cls(common, _batches(batch), steps, uniform)


def _batches(text: str | None) -> list[int]:
    """``1,8`` as numbers of sequences; 1 where nothing is given.

    Raises:
        SettingError: not such numbers.
    """
    written = (text or "1").replace(" ", "").split(",")
    if not all(number.isdecimal() and 1 <= int(number[:9]) <= 4096 for number in written):
        raise SettingError(f"--batch is {text!r}", hint="give numbers of sequences, e.g. 1,8")
    return sorted({int(number) for number in written})


def bench_decode(planned: PlannedModel, path: Path, request: DecodeRequest, reporter: Reporter) -> DecodeRecord:
    """Times decode steps and writes them beside the plan in the file ``path``.

    Raises:
        IdentityError: the model's sites are not the plan's.
        MeasurementError: not even the shortest length fits.
        IndexcacheError: one of its other kinds.
    """
    from ..dsa.decode.clock import DecodeClock

    if processes.process_count() > 1:
        raise SettingError("bench times one model on one process", hint="run it without accelerate launch")
    plan, checkpoint, common = planned.plan, planned.checkpoint, request.common
    planned.check_layout()
    check_writable(path.parent)
    contexts = _contexts(checkpoint, common)
    running = _running(checkpoint, common, common.dtype or plan.run.dtype, max(contexts))
    model = model_to_time(planned, running, common.placement, common.random_weights, reporter)
    install(model, running.backends, reporter.warn)
    busy = watch(processes.process_device())
    clock = DecodeClock(model, checkpoint.site_layers, running.backends.attention == "sparse")
    steps = _Steps(clock, checkpoint, _patterns(plan, request.uniform), running.backends, model.dtype.itemsize)
    points = steps.points(contexts, request, reporter)
    if not any(point.plan for point in points):
        raise MeasurementError(
            f"a cache of {min(contexts)} tokens does not fit", hint="lower --context or --batch"
        )
    if others := busy():
        reporter.warn(f"the machine was not idle: {others}; times may be too long, and their spread tells")
    record = DecodeRecord(
        **what_is_timed(planned, model, running.backends, common),
        steps=request.steps,
        filled="random" if clock.is_random else "prefill",
        launched="graph" if clock.is_graph else "eager",
        busy=others,
        versions=library_versions(),
        points=points,
    )
    _write(record, planned, path, reporter)
    return record


def _write(record: DecodeRecord, planned: PlannedModel, path: Path, reporter: Reporter) -> None:
    """Writes the record beside the plan in the file ``path``, and renders its report again."""
    write_atomically(decode_file(path), record.as_json())
    keep_sizes(path, planned.plan, planned.checkpoint)
    render_beside(planned.plan, path, warn=reporter.warn)


def _running(checkpoint: Checkpoint, request: BenchRequest, dtype: str, longest: int) -> Running:
    """How the model runs: behind a cache, attention to the selected keys only is faster at any length."""
    running = running_on(checkpoint, dtype, Room(), request.backends, longest)
    if request.backends.attention != "auto" or not checkpoint.selects_tokens:
        return running
    return replace(running, backends=replace(running.backends, attention="sparse"))


def _contexts(checkpoint: Checkpoint, request: BenchRequest) -> list[int]:
    fitting = [length for length in _DEFAULT_CONTEXTS if length <= (checkpoint.longest or length)]
    contexts = list(request.contexts) or fitting or [checkpoint.longest or _DEFAULT_CONTEXTS[0]]
    if not request.beyond_positions:
        hint = "lower --context, or allow it with --beyond-positions"
        check_positions(checkpoint, max(contexts), f"a context of {max(contexts)} tokens is", hint)
    return sorted(set(contexts))


def _patterns(plan: Plan, uniform: bool) -> dict[str, Pattern]:
    """What to time, by the name that it has in a record."""
    pattern = plan.pattern
    patterns = {"all_full": Pattern.all_full(len(pattern)), "plan": pattern}
    if uniform:
        patterns["uniform"] = Pattern.uniform(len(pattern), pattern.kept, plan.pinned_sites)
    return patterns


@dataclass(frozen=True)
class _Steps:
    """Decode steps of one model under several patterns; ``size`` is the bytes of a number."""

    clock: DecodeClock
    checkpoint: Checkpoint
    patterns: Mapping[str, Pattern]
    backends: Backends
    size: int

    def points(self, contexts: Sequence[int], request: DecodeRequest, reporter: Reporter) -> list[DecodePoint]:
        """Times at all lengths and batches, the smallest first: what fits is timed before something does not."""
        reporter.begin(len(contexts) * len(request.batches), "lengths")
        points = []
        for context in contexts:
            for batch in request.batches:
                timed = self._timed(context, batch, request)
                if timed is None:
                    reporter.warn(f"a cache of {context} tokens for {batch} sequences does not fit here")
                times = timed or {}
                full, plan, uniform = (times.get(name) for name in ("all_full", "plan", "uniform"))
                points.append(DecodePoint(context=context, batch=batch, all_full=full, plan=plan, uniform=uniform))
                reporter.advance(1)
        return points

    def _timed(self, context: int, batch: int, request: DecodeRequest) -> dict[str, DecodeTime] | None:
        """None if it does not fit."""
        import torch

        # The step's own token is the last of the context.
        tokens = any_tokens(self.checkpoint.vocabulary, context - 1)
        try:
            decodes = self.clock.time(
                list(self.patterns.values()), tokens, batch, request.common.repeats, request.steps
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        pairs = zip(self.patterns.items(), decodes, strict=True)
        return {name: self._time(decode, pattern, context, batch) for (name, pattern), decode in pairs}

    def _time(self, decode: Decode, pattern: Pattern, context: int, batch: int) -> DecodeTime:
        full_layers = {self.checkpoint.site_layers[site] for site in pattern.full}
        is_sparse = self.backends.attention == "sparse"
        reads = step_reads(self.checkpoint, context, batch, full_layers, self.size, is_sparse)
        return DecodeTime(
            seconds=decode.seconds,
            least=decode.least,
            most=decode.most,
            indexer_share=decode.indexer_share,
            read_bytes=None if reads is None else reads.all,
        )


def show(record: DecodeRecord, path: Path, as_json: bool) -> None:
    """Prints the decode times of the plan in ``path``, on stdout."""
    if as_json:
        print_result(record.as_json().rstrip())
    else:
        decode_table(record, decode_file(path))


def decode_table(record: DecodeRecord, path: Path) -> None:
    """Prints decode times and where they are written, on stdout."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    has_uniform = any(point.uniform for point in record.points)
    uniform = ("uniform, ms",) if has_uniform else ()
    for name in ("context", "batch", "all full, ms", "this plan, ms", *uniform, "speedup", "by bytes"):
        table.add_column(name, justify="right")
    for point in record.points:
        place = (f"{point.context:,}", str(point.batch))
        if point.speedup is None:
            table.add_row(*place, "does not fit")
            continue
        times = [point.all_full, point.plan, *((point.uniform,) if has_uniform else ())]
        by_bytes = point.speedup_by_bytes
        table.add_row(
            *place, *map(spread, times), f"{point.speedup:.2f}x", "" if by_bytes is None else f"{by_bytes:.2f}x"
        )
    console = new_console()
    weights = ", random weights" if record.random_weights else ""
    print_line(
        console,
        f"an output token of {record.model} on {record.device}, {record.dtype}{weights}; {record.attention} "
        f"attention; median (and spread) of {record.repeats} runs of {record.steps} steps",
    )
    print_table(console, table)
    if any(point.speedup_by_bytes for point in record.points):
        print_line(console, "by bytes: what the config says a step has to read, all full over this plan")
    print_line(console, f"written  {path}, and into the report beside it")
