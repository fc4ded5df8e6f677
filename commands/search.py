"""The search command: from checked input to a written plan, and the table that sums it up."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..calibrate.frozen import frozen_bytes
from ..calibrate.guess import unigram_loss
from ..calibrate.windows import Windows
from ..dsa.checkpoint.config import Checkpoint, Trust
from ..dsa.checks.competence import Guess
from ..dsa.checks.selections import unskilled_indexers
from ..dsa.checks.selfcheck import check_tokens as tokens_of_check
from ..dsa.checks.selfcheck import self_check
from ..dsa.model.evaluator import Evaluator
from ..evaluate import CALIBRATION, HELD_OUT
from ..pattern import layer_ranges
from ..recipes.schema import Recipe
from ..search.cost import LayerCount, Shape
from ..search.goal import Goal, Method
from ..search.plan.older import changed_steps
from ..search.plan.record import cost_record, heldout_record, result_record, search_record
from ..search.plan.schema import InitRecord, Plan
from ..search.report.pages import increase
from ..search.report.timing import Timing
from ..search.run.folder import PLAN_FILE, save_run
from ..search.run.replay import MissingLoss, ReplayedEvaluator
from ..search.search import Findings, SearchProgress, run_search
from ..search.strategies.greedy import Step
from ..search.strategies.refine import Swap
from ..system import processes
from ..system.console import Reporter, loss_rows, new_console, print_line, print_table
from ..system.exits import print_result
from ..system.launching import speaks
from .job.identity import search_identity
from .job.measure import evaluator, load, run_identity
from .job.prepare import Job, prepare
from .job.session import Session, session, stops_told

# Of the first window, enough for a mean loss.
_FEW_TOKENS = 1024


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search: the plan, where it was written, what it moved out of the way, and how long it took."""

    plan: Plan
    path: Path
    moved: Path | None
    timing: Timing


def search(recipe: Recipe, goal: Goal, out: Path, resume: str, trust: Trust, reporter: Reporter) -> SearchOutcome:
    """Searches a checkpoint and writes the run to ``out``, going on from the journal there.

    Everything that can be checked without the weights is checked before they are loaded, and they are
    loaded only if something has to be measured.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong; StoppedRunError where a signal came.
    """
    with stops_told(out, resume):
        job = prepare(recipe, goal, out, trust, reporter)
        with session(out, search_identity(job), resume, reporter) as run_session:
            return _written(job, run_session, reporter)


def _written(job: Job, session: Session, reporter: Reporter) -> SearchOutcome:
    """Searches, and writes what came of it."""
    checkpoint, windows = job.checkpoint, job.windows
    method, findings, measure = _searched(job, session, reporter)
    evaluations = measure.window_evaluations
    overlap_layers = len(windows.calibration) * checkpoint.layers if job.measures_overlap else 0
    plan = Plan(
        schema_version=2,
        indexcache=__version__,
        model=job.model,
        tokens=job.tokens,
        run=session.how_it_ran(),
        search=search_record(findings, method, checkpoint.site_layers, _init_record(job.older, findings)),
        result=result_record(findings, job.goal, job.model),
        heldout=heldout_record(findings.heldout),
        cost=cost_record(
            findings,
            evaluations,
            measure.count.layer_windows + overlap_layers,
            evaluations * windows.length,
            len(windows.calibration),
            checkpoint.layers,
        ),
    )
    timing = session.timing()
    moved = processes.run_on_main(lambda: save_run(job.folder, plan, frozen_bytes(windows), timing))
    return SearchOutcome(plan, job.folder / PLAN_FILE, moved, timing)


def _searched(job: Job, session: Session, reporter: Reporter) -> tuple[Method, Findings, ReplayedEvaluator]:
    """Goes through the search on what the journal holds; the model is loaded only for what it lacks."""
    content = session.content
    checked = content.checked or not job.self_checks
    if content.window_evaluations and checked and (content.overlap_matrix is not None or not job.measures_overlap):
        with suppress(MissingLoss):
            method = replace(job.method, overlap_matrix=content.overlap_matrix if job.measures_overlap else None)
            measure = _replay(job, session)
            return method, _run(job, measure, method, _silent(measure)), measure
    if content.run is not None:
        processes.use_threads(content.run.threads)
    model = _loaded(job, session, reporter)
    method = job.method
    if job.measures_overlap:
        if content.overlap_matrix is None:
            session.overlaps(model.overlap(CALIBRATION, job.checkpoint.selection_width))
        method = replace(method, overlap_matrix=content.overlap_matrix)
    expected = replace(job, method=method).expected(reporter)
    reporter.begin(expected.window_evaluations, "window evaluations", guessed=True)
    measure = _replay(job, session, model, reporter)
    return method, _run(job, measure, method, _spoken(job, reporter, measure)), measure


def _loaded(job: Job, session: Session, reporter: Reporter) -> Evaluator:
    """The model, tried out and ready to measure patterns."""
    # A journal that says so is of the same weights, tokens, code and versions.
    to_check = job.self_checks and not session.content.checked
    tokens = job.windows.calibration.flatten().tolist() if to_check else ()
    loaded = load(job.checkpoint, job.running, job.length, reporter, tokens, job.weights, quantiser=job.quantiser)
    session.ran(run_identity(loaded))
    if to_check:
        reporter.doing("checking on a short window that sharing works")
        guess = _guess(job.checkpoint, job.windows) if job.expects_training else None
        self_check(loaded.model, job.checkpoint, tokens, guess)
        if job.expects_training:
            first = job.windows.calibration[0].tolist()
            if (line := unskilled_indexers(loaded.model, job.checkpoint, first)) is not None:
                reporter.warn(line)
        session.checked()
    return evaluator(loaded, job.windows, reporter)


def _guess(checkpoint: Checkpoint, windows: Windows) -> Guess:
    """What the tokens' frequencies in all other windows say of the first one's beginning."""
    first = windows.calibration[0][: max(_FEW_TOKENS, tokens_of_check(checkpoint.selection_width))]
    others = np.concatenate([windows.calibration[1:].ravel(), windows.heldout.ravel()])
    return Guess(first.tolist(), unigram_loss(first[1:], others, checkpoint.vocabulary))


def _replay(
    job: Job, session: Session, model: Evaluator | None = None, reporter: Reporter | None = None
) -> ReplayedEvaluator:
    checkpoint = job.checkpoint
    groups = {name: len(job.windows.group(name)) for name in (CALIBRATION, HELD_OUT)}
    shape = Shape(checkpoint.site_layers, checkpoint.layers, groups[CALIBRATION], groups[HELD_OUT])
    skip = reporter.skip if reporter is not None else lambda losses: None
    return ReplayedEvaluator(session.content, groups, LayerCount(shape), model, session.write, skip)


def _run(job: Job, measure: ReplayedEvaluator, method: Method, progress: SearchProgress) -> Findings:
    windows, site_layers = job.windows, job.checkpoint.site_layers
    return run_search(
        measure,
        labels=windows.length - 1,
        documents={name: windows.documents(name) for name in (CALIBRATION, HELD_OUT)},
        sites=len(site_layers),
        goal=job.goal,
        method=method,
        progress=progress,
        layer_windows=lambda: measure.count.layer_windows,
        site_layers=site_layers,
    )


def _init_record(older: Plan | None, findings: Findings) -> InitRecord | None:
    if older is None:
        return None
    digest = hashlib.sha256(older.as_json().encode()).hexdigest()
    return InitRecord(plan_sha256=digest, changed_steps=changed_steps(older, findings.steps))


def _silent(measure: ReplayedEvaluator) -> SearchProgress:
    return SearchProgress(step=lambda step: measure.follow(step.pattern))


def _spoken(job: Job, reporter: Reporter, measure: ReplayedEvaluator) -> SearchProgress:
    layers = job.checkpoint.site_layers
    last, began = len(layers) - job.method.deepest(job.goal, len(layers)), time.monotonic()

    def step(step: Step) -> None:
        number = len(layers) - step.pattern.kept
        tie = f", tied with {len(step.tied)} more" if step.tied else ""
        reporter.say(
            f"step {number}/{last}: dropped layer {layers[step.removed]}, loss {step.evaluation.loss:.4f}{tie}, "
            f"{time.monotonic() - began:.0f} s"
        )
        measure.follow(step.pattern)

    def swap(swap: Swap) -> None:
        reporter.say(
            f"refined: layer {layers[swap.restored]} full instead of {layers[swap.removed]}, "
            f"loss {swap.evaluation.loss:.5f}"
        )

    return SearchProgress(step, swap)


def show(outcome: SearchOutcome, folder: Path, as_json: bool, quiet: bool, reporter: Reporter) -> None:
    """Prints the plan or its path on stdout, and what the search found on stderr."""
    if not speaks():
        return
    if outcome.moved:
        reporter.say(f"the run that stood there is now in {outcome.moved}")
    if not quiet:
        search_summary(outcome.plan, folder, outcome.timing)
    print_result(outcome.plan.as_json().rstrip() if as_json else str(outcome.path))


def search_summary(plan: Plan, folder: Path, timing: Timing) -> None:
    """Prints what a search found, on stderr."""
    result, tokens = plan.result, plan.tokens
    table = loss_rows(plan.heldout is not None)
    held = plan.heldout
    full = ["all full", str(result.sites), f"{plan.search.baseline_loss:.4f}", ""]
    table.add_row(*full, *([""] if held else []))
    chosen = ["this plan", str(result.kept), f"{result.loss:.4f}", increase(result)]
    table.add_row(*chosen, *([increase(held.plan)] if held else []))
    if result.uniform:
        even = ["uniform", str(result.kept), f"{result.uniform.loss:.4f}", increase(result.uniform)]
        table.add_row(*even, *([increase(held.uniform)] if held else []))
    console = new_console(stderr=True)
    print_line(
        console,
        f"{plan.model.id}: {result.kept} of {result.sites} indexers kept, in {result.layers} layers; "
        "losses in nats per token",
    )
    print_table(console, table)
    print_line(console, f"pattern  {result.layer_pattern}")
    if plan.search.pinned_layers:
        print_line(console, f"pinned   layers {layer_ranges(plan.search.pinned_layers)}, in uniform too")
    print_line(
        console,
        f"{tokens.windows} calibration and {tokens.heldout_windows} held-out windows of {tokens.window} tokens; "
        f"{timing.seconds:.0f} s" + (f" in {timing.sittings} sessions" if timing.sittings > 1 else ""),
    )
    cost = plan.cost
    print_line(
        console,
        f"{cost.search_layer_windows} layer-windows to choose, {cost.fewer:.1f} times fewer than Algorithm 1",
    )
    print_line(console, f"report   {folder / 'report.html'}")
