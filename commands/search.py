"""The search command: from checked input to a written plan, and what stands beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..calibrate.frozen import frozen_bytes
from ..calibrate.guess import unigram_loss
from ..calibrate.windows import Windows
from ..dsa.checkpoint.config import Checkpoint, Trust
from ..dsa.checks.competence import Guess
from ..dsa.checks.selections import unskilled_indexers
from ..dsa.checks.selfcheck import check_tokens as tokens_of_check
from ..dsa.checks.selfcheck import self_check
from ..dsa.model.evaluator import Evaluator
from ..errors import GateError, MeasurementError
from ..evaluate import CALIBRATION, HELD_OUT, HELD_OUT_PROBES
from ..recipes.schema import Recipe
from ..search.cost import LayerCount, Shape, layer_cost_runs, layer_cost_sweeps
from ..search.gate import Gate
from ..search.goal import Goal, Method
from ..search.plan.older import changed_steps
from ..search.plan.record import cost_record, heldout_record, probes_record, result_record, search_record
from ..search.plan.schema import InitRecord, Plan
from ..search.price.memory import IndexerSizes
from ..search.report.timing import Timing
from ..search.run.folder import PLAN_FILE, save_choice, save_run
from ..search.run.replay import MissingLoss, ReplayedEvaluator
from ..search.search import Findings, SearchProgress, choose, complete
from ..system import processes
from ..system.console import Reporter
from ..system.exits import print_result
from ..system.launching import speaks
from ..version import __version__
from . import search_students
from .fingerprint import Source, stands, write_beside
from .indexer_sizes import indexer_sizes
from .job.identity import search_identity
from .job.measure import Loaded, evaluator, load, run_identity
from .job.prepare import Job, prepare
from .job.session import Session, resumable_stops, session
from .job.windows import windows_problem
from .search_log import SearchLog, search_log
from .search_table import nothing_dropped, search_summary, silent_progress, spoken_progress

# Of the first window, enough for a mean loss.
_FEW_TOKENS = 1024


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search: the plan, where it was written, what it moved out of the way, and how long it took.

    ``weight_bytes`` of weights came to the devices in this session; ``sizes`` are of the checkpoint's indexers.
    """

    plan: Plan
    path: Path
    moved: Path | None
    timing: Timing
    weight_bytes: int = 0
    sizes: IndexerSizes | None = None


def search(
    recipe: Recipe, goal: Goal, out: Path, resume: str, trust: Trust, reporter: Reporter, log: str | None = None
) -> SearchOutcome:
    """Searches a checkpoint and writes the run to ``out``, going on from the journal there.

    Everything that can be checked without the weights is checked before they are loaded, and they are
    loaded only if something has to be measured. ``log`` names a tracker that is told of each step.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong; StoppedRunError where a signal came.
    """
    with resumable_stops(out, resume), search_log(log, recipe, goal, out, reporter) as steps_log:
        job = prepare(recipe, goal, out, trust, reporter)
        identity = {
            **search_students.identity(job),  # first, as students have tokens of their own
            **search_identity(job.model, job.tokens, job.running, job.weighs_keys),
        }
        with session(out, identity, resume, reporter) as run_session:
            return _outcome(job, run_session, reporter, steps_log)


def _outcome(job: Job, session: Session, reporter: Reporter, log: SearchLog) -> SearchOutcome:
    """Searches; writes the plan as soon as it is chosen, and again with what is measured beside it."""

    moved: list[Path | None] = []

    def save(run: _Run, findings: Findings) -> None:
        plan = _plan(job, session, run, findings, complete=False)
        moved.append(processes.run_on_main(lambda: save_choice(job.folder, plan, frozen_bytes(job.windows))))
        if run.model is not None:
            path, rest = job.folder / PLAN_FILE, "measuring baselines, held-out windows and probes"
            reporter.say(f"plan chosen and written to {path}; {rest}")

    run, findings = _findings(job, session, reporter, log, save)
    plan, timing = _plan(job, session, run, findings, complete=True), session.timing()
    log.conclude(plan)
    sizes = indexer_sizes(job.checkpoint)
    moved.append(
        processes.run_on_main(lambda: save_run(job.folder, plan, frozen_bytes(job.windows), timing, sizes))
    )
    aside = next((folder for folder in moved if folder is not None), None)
    if job.fingerprints and not processes.run_on_main(lambda: stands(plan, job.folder / PLAN_FILE)):
        _write_fingerprint(job, session, run, plan, reporter)
    moved_bytes = 0 if run.model is None else run.model.weight_bytes()
    return SearchOutcome(plan, job.folder / PLAN_FILE, aside, timing, moved_bytes, sizes)


@dataclass(frozen=True)
class _Run:
    """A search in progress: how it goes about it, what measures, and the model if that is there to.

    ``loaded`` is what the model was made of.
    """

    method: Method
    measure: ReplayedEvaluator
    model: Evaluator | None
    loaded: Loaded | None = None


def _write_fingerprint(job: Job, session: Session, run: _Run, plan: Plan, reporter: Reporter) -> None:
    """Writes the plan's fingerprint; a plan that none can be made of stands all the same."""
    if plan.lacks_indexers:
        reporter.say(
            "no fingerprint: no server has the plan's indexers before indexcache distill has written them"
        )
        return
    try:
        loaded, model = run.loaded, run.model
        if loaded is None or model is None:
            processes.use_threads(plan.run.threads)
            loaded, model = _model(job, session, reporter)
        source = Source(loaded, job.weights, job.windows, model)
        write_beside(plan, job.folder / PLAN_FILE, source, reporter)
    except MeasurementError as error:
        reporter.warn(f"no fingerprint: {error}")


def _plan(job: Job, session: Session, run: _Run, findings: Findings, complete: bool) -> Plan:
    checkpoint, windows, confidence = job.checkpoint, job.windows, job.method.confidence
    evaluations = run.measure.window_evaluations
    overlap_layers = len(windows.calibration) * checkpoint.layers if job.measures_overlap else 0
    surrogate = run.method.surrogate if run.method.layer_costs else "none"
    cost_shape = (
        len(run.method.layer_costs or ()),
        checkpoint.layers,
        checkpoint.site_layers,
        checkpoint.shared_layers,
    )
    cost_sweeps = layer_cost_sweeps(surrogate, *cost_shape)
    probes = windows.groups.get(HELD_OUT_PROBES)
    return Plan(
        indexcache=__version__,
        complete=complete,
        model=job.model,
        tokens=job.tokens,
        run=session.run_identity(),
        search=search_record(
            findings,
            run.method,
            checkpoint.site_layers,
            _init_record(job.older, findings),
            search_students.record(job, len(run.measure.count.segments)),
        ),
        result=result_record(findings, job.goal, job.model, confidence),
        heldout=heldout_record(findings.heldout, confidence),
        probes=probes_record(findings.probes, () if probes is None else probes.kinds, confidence),
        cost=cost_record(
            findings,
            run.method,
            evaluations,
            run.measure.count.layer_windows + overlap_layers,
            evaluations * windows.length,
            checkpoint.layers,
            layer_cost_runs(surrogate, *cost_shape),
            run.measure.count.sweeps + len(cost_sweeps) + job.measures_overlap,
            job.weights.sweep_bytes(checkpoint.layers),
        ),
    )


def _findings(
    job: Job, session: Session, reporter: Reporter, log: SearchLog, save: Callable[[_Run, Findings], None]
) -> tuple[_Run, Findings]:
    """Goes through the search on what the journal holds; the model is loaded only for what it lacks."""
    content = session.content
    if content.window_evaluations and (content.checked or not job.self_checks) and _measured_beside(job, session):
        with suppress(MissingLoss):
            run = _Run(_method(job, session), _replay(job, session), model=None)
            return run, _run(job, run, log.followed(silent_progress(run.measure.follow)), save)
    if content.run is not None:
        # Sums are rounded as in the session that measured what is there.
        processes.use_threads(content.run.threads)
    loaded, model = _model(job, session, reporter)
    _measure_beside(job, session, model, reporter)
    method = _method(job, session)
    expected = replace(job, method=method).expected(reporter)
    reporter.begin(expected.window_evaluations, "window evaluations", guessed=True)
    run = _Run(method, _replay(job, session, model, reporter), model, loaded)
    layers = job.checkpoint.site_layers
    removals = len(layers) - method.deepest(job.goal, len(layers))
    progress = spoken_progress(layers, removals, reporter, run.measure.follow)
    return run, _run(job, run, log.followed(progress), save)


def _measured_beside(job: Job, session: Session) -> bool:
    """Whether the journal holds what is measured of the model itself, of no pattern."""
    content, surrogate = session.content, job.method.surrogate
    has_costs = surrogate == "none" or surrogate in content.layer_costs
    return has_costs and (content.overlap_matrix is not None or not job.measures_overlap)


def _measure_beside(job: Job, session: Session, model: Evaluator, reporter: Reporter) -> None:
    """Measures what the journal lacks of the model itself: layer costs, and the overlap of selections."""
    content, surrogate = session.content, job.method.surrogate
    if surrogate != "none" and surrogate not in content.layer_costs:
        reporter.doing("measuring what each layer costs under earlier layers' selections")
        try:
            session.keep_costs(surrogate, model.layer_costs(CALIBRATION, surrogate))
        except MeasurementError as error:
            if job.method.strategy == "dp":
                raise
            # They only save work and give a baseline: a search can do without.
            reporter.warn(f"no layer costs, so fast begins without an order: {error}")
    if job.measures_overlap and content.overlap_matrix is None:
        reporter.doing("measuring how far selections overlap")
        session.keep_overlap(model.overlap(CALIBRATION, job.checkpoint.selection_width))


def _method(job: Job, session: Session) -> Method:
    """The job's method with what was measured of the model itself."""
    content = session.content
    return replace(
        job.method,
        overlap_matrix=content.overlap_matrix if job.measures_overlap else None,
        layer_costs=content.layer_costs.get(job.method.surrogate),
    )


def _model(job: Job, session: Session, reporter: Reporter) -> tuple[Loaded, Evaluator]:
    """The model, tried out and ready to measure patterns."""
    # A journal that says so is of the same weights, tokens, code and versions.
    to_check = job.self_checks and not session.content.checked
    tokens = job.windows.calibration.flatten().tolist() if to_check else ()
    loaded = load(job.checkpoint, job.weights, job.running, job.length, reporter, tokens)
    session.keep_run(run_identity(loaded))
    if to_check:
        reporter.doing("checking on a short window that sharing works")
        guess = _guess(job.checkpoint, job.windows) if job.expects_training else None
        self_check(loaded.model, job.checkpoint, tokens, guess)
        if job.expects_training:
            first = job.windows.calibration[0].tolist()
            if (line := unskilled_indexers(loaded.model, job.checkpoint, first)) is not None:
                reporter.warn(line)
        session.keep_self_check()
    key_groups = tuple(job.windows.groups) if job.weighs_keys else (HELD_OUT,)
    students = search_students.make(job, loaded, reporter)
    return loaded, evaluator(loaded, job.windows, reporter, key_groups, students=students)


def _guess(checkpoint: Checkpoint, windows: Windows) -> Guess:
    """What the tokens' frequencies in all other windows say of the first one's beginning."""
    first = windows.calibration[0][: max(_FEW_TOKENS, tokens_of_check(checkpoint.selection_width))]
    # Without the first window, whose words would predict themselves.
    others = np.concatenate([windows.calibration[1:].ravel(), windows.heldout.ravel()])
    return Guess(first.tolist(), unigram_loss(first[1:], others, checkpoint.vocabulary))


def _replay(
    job: Job, session: Session, model: Evaluator | None = None, reporter: Reporter | None = None
) -> ReplayedEvaluator:
    checkpoint = job.checkpoint
    shape = Shape(checkpoint.site_layers, checkpoint.layers, *job.window_counts, distils=job.method.distils)
    skip = reporter.skip if reporter is not None else lambda losses: None
    return ReplayedEvaluator(session.content, LayerCount(shape), model, session.write, skip)


def _run(job: Job, run: _Run, progress: SearchProgress, save: Callable[[_Run, Findings], None]) -> Findings:
    """Chooses, has the choice saved, and completes it."""
    site_layers = job.checkpoint.site_layers
    problem = windows_problem(
        run.measure,
        job.windows,
        len(site_layers),
        job.goal,
        run.method,
        lambda: run.measure.count.layer_windows,
        site_layers,
    )
    findings = choose(problem, progress)
    save(run, findings)
    return complete(problem, findings)


def _init_record(older: Plan | None, findings: Findings) -> InitRecord | None:
    if older is None:
        return None
    digest = hashlib.sha256(older.as_json().encode()).hexdigest()
    return InitRecord(plan_sha256=digest, changed_steps=changed_steps(older, findings.steps))


def show(outcome: SearchOutcome, folder: Path, as_json: bool, quiet: bool, reporter: Reporter) -> None:
    """Prints the plan or its path on stdout, and what the search found on stderr."""
    if not speaks():
        return
    if outcome.moved:
        reporter.say(f"the run that stood there is now in {outcome.moved}")
    if (line := nothing_dropped(outcome.plan)) is not None:
        reporter.warn(line)
    if not quiet:
        search_summary(outcome.plan, folder, outcome.timing, outcome.weight_bytes, outcome.sizes)
    print_result(outcome.plan.as_json().rstrip() if as_json else str(outcome.path))


def hold(outcome: SearchOutcome, recipe: Recipe) -> None:
    """Ends a search whose plan costs too much on probes; the plan is written all the same.

    Raises:
        GateError: says how much, and the limit.
    """
    limit, probes = recipe.max_probe_delta, outcome.plan.probes
    if limit is None:
        return
    if probes is None:
        raise GateError("the plan's loss on probes is NaN or infinite, so that --max-probe-delta cannot hold it")
    gate = Gate(recipe.gate, recipe.confidence)
    if not gate.passes(probes.all, limit):
        raise GateError(gate.failure(probes.all, limit, "--max-probe-delta", "the plan's loss on probes"))
