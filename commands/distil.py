"""The distill command: a plan's kept indexers trained for the layers that they serve, in a new checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..calibrate.frozen import token_sha256
from ..calibrate.windows import WindowRequest, Windows
from ..dsa.checkpoint.config import Trust
from ..dsa.checkpoint.stored.copies import check_place
from ..dsa.checkpoint.stored.rewrite import bytes_needed
from ..dsa.distil.collect import trainable_family
from ..dsa.distil.segments import Segment
from ..dsa.distil.stored import StoredParameter, stored_indexers
from ..dsa.distil.train import Settings, Trained, collect, train
from ..dsa.long.backends import Backends
from ..dsa.stream.room import Room
from ..errors import GateError, IndexcacheError, ModelError, OutputError, StoppedRunError
from ..evaluate import CALIBRATION, HELD_OUT, LEARNING
from ..pattern import Pattern
from ..search.distil.findings import DistilledFindings, measure_distilled, measure_segments
from ..search.distil.record import Training, hold_distilled
from ..search.goal import Goal, Method
from ..search.plan.file import plan_file, read_plan
from ..search.plan.schema import Plan
from ..search.report.words import NOT_COMPLETE
from ..system import processes
from ..system.console import Reporter
from ..system.files import check_writable
from ..system.signals import Stop, check_stop
from .distil_settings import ROWS, STEPS, WINDOWS_A_STEP, DistilSettings, distil_settings
from .distil_work import Work, kept_count, working_in
from .distil_write import write
from .job.identity import search_identity
from .job.measure import Loaded, Running, evaluator, load, running_on
from .job.planned import PlannedModel, open_planned
from .job.prepare import announce
from .job.settings import room_of
from .job.windows import ProbeRequest, build_windows, check_documents, windows_problem

Places = Mapping[int, Mapping[str, StoredParameter]]


@dataclass(frozen=True)
class DistilOutcome:
    """A distilled checkpoint, its plan, and what that is held to."""

    settings: DistilSettings
    plan: Plan
    path: Path

    def hold(self) -> None:
        """Ends what did not pass; the checkpoint is written all the same.

        Raises:
            GateError: the loss did not fall, or is above the limit.
        """
        failure = hold_distilled(self.plan, self.settings.gate, self.settings.max_delta)
        if failure is not None:
            raise GateError(failure)


@dataclass(frozen=True)
class _Lesson:
    """What indexers learn from.

    Args:
        windows: token ids.
        dataset: whose text it is.
        sha256: of the tokens.
    """

    windows: Sequence[Sequence[int]]
    dataset: str
    sha256: str


def distill(
    plan: str | Path,
    out: str | Path,
    *,
    pattern: str | Pattern | None = None,
    uniform: bool = False,
    steps: int = STEPS,
    rows: int = ROWS,
    learning_rate: float | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    windows: int | None = None,
    max_delta: float | None = None,
    max_memory: str | None = None,
    model: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Distils a plan's kept indexers into a new checkpoint, as the command ``distill`` does; the new plan.

    ``indexcache.load(out, out)`` is the new checkpoint under its plan.

    Args:
        plan: a plan.json with its tokens beside it, or the folder of a run.
        out: folder of the new checkpoint, which is not there yet.
        pattern: to distil for; the plan's if not given.
        uniform: distil for as many indexers as the plan's, spread evenly.
        steps: of each indexer.
        rows: queries of each window that are learned from.
        learning_rate: the highest; None for a short probe.
        seed: of rows and of the windows' order; the plan's if not given.
        dataset: text to learn from, as the command takes it; the plan's calibration windows if not given.
        windows: how many of that text.
        max_delta: the largest loss increase that may remain, nats per token.
        max_memory: what weights may take on each device, such as "60GB".
        model: where the plan's checkpoint is now, if it moved.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        GateError: the held-out loss did not fall, or is above ``max_delta``: the checkpoint is written; or no
            indexer became better: then nothing is.
        IndexcacheError: one of its other kinds.
    """
    path = plan_file(Path(plan))
    source = read_plan(path)
    given = {
        "seed": seed,
        "dataset": dataset,
        "windows": windows,
        "max_delta": max_delta,
        "max_memory": max_memory,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    spelled = None if pattern is None else str(pattern)
    settings = distil_settings(source, Path(out), spelled, uniform, steps, rows, learning_rate, fields)
    planned = open_planned(source, None if model is None else str(model), Trust(trust_remote_code))
    with Reporter(quiet=True) as reporter:
        outcome = distil(planned, path, settings, room_of(fields), reporter)
    outcome.hold()
    return outcome.plan


def distil(
    planned: PlannedModel, path: Path, settings: DistilSettings, room: Room, reporter: Reporter
) -> DistilOutcome:
    """Distils the kept indexers of the plan in the file ``path`` and writes a checkpoint and its plan.

    Raises:
        GateError: no indexer became better; nothing is written.
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        StoppedRunError: a signal came, and the same command goes on.
        IndexcacheError: one of its other kinds.
    """
    with _resumable(settings.work):
        announce(planned.checkpoint, reporter)
        if not planned.plan.complete:
            reporter.warn(NOT_COMPLETE)
        places = _checked(planned, settings)
        windows = planned.windows(path.parent)
        check_documents(windows, HELD_OUT, settings.max_delta, "--max-delta", settings.gate.kind)
        lesson = _lesson(planned, windows, settings, reporter)
        planned.check_weights(reporter)
        with working_in(settings.work, reporter) as work:
            outcome = _distilled(planned, windows, settings, lesson, places, room, work, reporter)
        processes.run_on_main(work.remove)
    return outcome


def _checked(planned: PlannedModel, settings: DistilSettings) -> Places:
    """Where the kept indexers are stored, once all that can be checked before anything is read or loaded is.

    Raises:
        ModelError: a family, a place or a form of weights that indexers are not distilled in.
        OutputError: ``--out`` cannot be written, or its disk is too small.
    """
    checkpoint, out = planned.checkpoint, settings.out
    trainable_family(checkpoint)
    if checkpoint.revision is not None:
        raise ModelError(
            f"{checkpoint.model_id!r} is on the hub, and a distilled copy is made of a local folder only",
            hint=f"hf download {checkpoint.model_id} --revision {checkpoint.revision} --local-dir FOLDER, then "
            "give --model FOLDER",
        )
    if out.resolve() != checkpoint.folder.resolve() and out.resolve().is_relative_to(checkpoint.folder.resolve()):
        raise OutputError(f"{str(out)!r} is inside the checkpoint", hint="give another folder with --out")
    sites = [site for site, _ in settings.pattern.serving]
    weights = planned.weights  # looked for by the main process, for all
    places = processes.run_on_main(lambda: stored_indexers(checkpoint, weights, sites))
    names = {name for of_site in places.values() for place in of_site.values() for name in place.headers}

    def check() -> None:
        check_place(checkpoint.folder, out, bytes_needed(weights.shards, names, out))
        check_writable(settings.work, out)

    processes.run_on_main(check)
    return places


def _lesson(planned: PlannedModel, windows: Windows, settings: DistilSettings, reporter: Reporter) -> _Lesson:
    """The plan's windows but those held out, or windows of other text without the held-out documents.

    Raises:
        DatasetError: text that cannot be read, or too little of it.
    """
    tokens, source = planned.plan.tokens, settings.text
    if source is None:
        learned = [*windows.calibration.tolist(), *windows.group(LEARNING).tolist()]
        return _Lesson(learned, tokens.dataset, tokens.sha256)
    request = WindowRequest(windows.length, calibration=settings.windows, heldout=0, seed=settings.seed)
    seen = [windows.groups[HELD_OUT]]
    reporter.doing(f"reading {source.dataset}")
    other = processes.run_on_main(
        lambda: build_windows(planned.checkpoint, source, request, ProbeRequest(0), reporter, seen)
    )
    return _Lesson(other.group(CALIBRATION).tolist(), source.dataset, token_sha256(other))


def _distilled(
    planned: PlannedModel,
    windows: Windows,
    settings: DistilSettings,
    lesson: _Lesson,
    places: Places,
    room: Room,
    work: Work,
    reporter: Reporter,
) -> DistilOutcome:
    """Trains what is not trained yet, measures, and writes."""
    plan, checkpoint = planned.plan, planned.checkpoint
    processes.use_threads(plan.run.threads)
    backends = Backends(plan.run.indexer, plan.run.attention)
    running = running_on(checkpoint, plan.run.dtype, room, backends, windows.length)
    segments = [Segment(*ends) for ends in settings.pattern.serving]
    identity = _identity(plan, running, settings, lesson)
    trained = work.open(identity, [segment.site for segment in segments])
    trial_tokens = windows.group(HELD_OUT).ravel().tolist()
    loaded = load(checkpoint, planned.weights, running, windows.length, reporter, trial_tokens, plan.run)
    trained = _trained(loaded, lesson, segments, settings, trained, work, reporter)
    parameters = {
        site: {name: places[site][name].rounded(value) for name, value in indexer.parameters.items()}
        for site, indexer in trained.items()
    }
    findings = _findings(planned, loaded, windows, settings, parameters, reporter)
    if not findings.written:
        raise _no_nearer(len(segments))
    training = Training(
        dataset=lesson.dataset,
        windows=len(lesson.windows),
        steps=settings.steps,
        windows_a_step=WINDOWS_A_STEP,
        rows=settings.rows,
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        rates={site: indexer.learning_rate for site, indexer in trained.items()},
        curves={site: indexer.curve for site, indexer in trained.items()},
    )
    contents = _contents(places, trained, findings)
    written = processes.run_on_main(
        lambda: write(planned, loaded, windows, settings, training, findings, contents, work.folder, reporter)
    )
    return DistilOutcome(settings, written, settings.out / "plan.json")


def _no_nearer(segments: int) -> GateError:
    error = GateError(
        f"distilling brought none of {segments} indexers nearer to all full, held out, so nothing is written",
        hint="give another --lr, or more text with --dataset",
    )
    error.has_document = False
    return error


def _identity(plan: Plan, running: Running, settings: DistilSettings, lesson: _Lesson) -> dict[str, object]:
    """What trained indexers depend on."""
    return {
        **search_identity(plan.model, plan.tokens, running, weighs_keys=False),
        "pattern": str(settings.pattern),
        "steps": settings.steps,
        "rows": settings.rows,
        "learning_rate": settings.learning_rate or "auto",
        "distill_seed": settings.seed,
        "distill_tokens": lesson.sha256,
    }


def _trained(
    loaded: Loaded,
    lesson: _Lesson,
    segments: Sequence[Segment],
    settings: DistilSettings,
    before: Mapping[int, Trained],
    work: Work,
    reporter: Reporter,
) -> dict[int, Trained]:
    """Trained indexers of all segments, by site: those of ``before``; others are shared out over processes."""
    waiting = [segment for segment in segments if segment.site not in before]
    if not waiting:
        return dict(before)
    together, rank = processes.process_count(), processes.process_index()
    # A process without a segment sweeps too, as the others may need its part of the weights.
    share = waiting[rank::together]
    how = Settings(settings.steps, settings.rows, WINDOWS_A_STEP, settings.learning_rate, settings.seed)
    layers = loaded.checkpoint.site_layers
    reporter.doing(f"running {len(lesson.windows)} windows, all full, for {len(waiting)} indexers to learn from")
    stored = collect(loaded.model, layers, lesson.windows, share or waiting[:1], how)
    reporter.begin(settings.steps * len(waiting), "training steps")

    def on_step(step: int, divergence: float) -> None:
        check_stop()
        reporter.advance(min(together, len(waiting)))

    mine: dict[int, Trained] = {}
    for segment in share:
        mine[segment.site] = train(loaded.model, stored, segment, how, on_step)
        work.keep(segment.site, mine[segment.site])
    return {**before, **processes.merge(mine)}


def _findings(
    planned: PlannedModel,
    loaded: Loaded,
    windows: Windows,
    settings: DistilSettings,
    parameters: Mapping[int, Mapping[str, torch.Tensor]],
    reporter: Reporter,
) -> DistilledFindings:
    """What distilled indexers, rounded as they are stored, change: each alone, then together those that stay."""
    plan, segments = planned.plan, settings.pattern.serving
    held_out, calibration = len(windows.heldout), plan.search.windows or len(windows.calibration)
    total = held_out * (2 * len(segments) + 4) + 3 * calibration
    reporter.begin(total, "window evaluations")
    distilled = {Segment(site, end): parameters[site] for site, end in segments}
    model = evaluator(loaded, windows, reporter, distilled=distilled)
    sites = len(plan.model.site_layers)
    problem = windows_problem(model.sweep, windows, sites, Goal(keep=1.0), Method(pinned=plan.pinned_sites))
    return measure_distilled(problem, settings.pattern, measure_segments(problem, segments), calibration)


def _contents(places: Places, trained: Mapping[int, Trained], findings: DistilledFindings) -> dict[str, bytes]:
    """The bytes of every stored tensor that changes, by name."""
    contents: dict[str, bytes] = {}
    for site in sorted(findings.written):
        for name, value in trained[site].parameters.items():
            contents |= places[site][name].contents(value)
    return contents


@contextmanager
def _resumable(work: Path) -> Iterator[None]:
    """Within it a stop ends in what of the run is kept, where anything is.

    Raises:
        StoppedRunError: a signal came, and the same command goes on from ``work``.
    """
    try:
        yield
    except Stop as stop:
        count = kept_count(work)
        if not count:
            raise
        raise StoppedRunError(
            f"stopped by {stop.name}: {count} trained indexers are kept in {str(work)!r}",
            hint="run the same command again to go on",
        ) from None
    except OSError as error:  # of training and measuring, and not of printing
        raise IndexcacheError(f"unexpected {type(error).__name__}: {error}") from error
