"""The search command: from checked input to a written plan, and the table that sums it up."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..calibrate.frozen import frozen_bytes, token_sha256
from ..calibrate.guess import unigram_loss
from ..calibrate.windows import Windows, informative_positions, informative_share
from ..dsa.checkpoint.config import Checkpoint, Trust
from ..dsa.checks.competence import Guess
from ..dsa.checks.selfcheck import check_tokens as tokens_of_check
from ..dsa.checks.selfcheck import self_check
from ..dsa.model.evaluator import Evaluator
from ..errors import JournalError
from ..evaluate import CALIBRATION, HELD_OUT
from ..pattern import layer_ranges
from ..recipes.schema import Recipe
from ..search.cost import LayerCount, Shape
from ..search.goal import Goal, Method
from ..search.plan.older import changed_steps
from ..search.plan.record import cost, heldout_record, result, search_record
from ..search.plan.schema import InitRecord, Plan, RunIdentity, TokenIdentity
from ..search.report.pages import increase
from ..search.run.folder import PLAN_FILE, TOKENS_FILE, save_run
from ..search.run.replay import Journaled, Unmeasured
from ..search.run.timing import Timing
from ..search.search import Findings, Told, run_search
from ..search.strategies.greedy import Step
from ..search.strategies.refine import Swap
from ..system import processes
from ..system.console import Reporter, loss_rows, new_console, print_line
from .job.identity import search_identity
from .job.measure import evaluator, load_for, run_identity
from .job.prepare import Prepared, expected_for, prepare, text_source
from .job.session import Sitting, sitting, stops_told

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
        prepared = prepare(recipe, goal, out, trust, reporter)
        return _search(recipe, goal, out, resume, prepared, reporter)


def _search(
    recipe: Recipe, goal: Goal, out: Path, resume: str, prepared: Prepared, reporter: Reporter
) -> SearchOutcome:
    checkpoint, windows = prepared.checkpoint, prepared.windows
    with sitting(out, search_identity(recipe, prepared), resume, reporter) as this:
        method, findings, measure = _found(recipe, goal, prepared, this, reporter)
        evaluations = measure.window_evaluations
        overlap_layers = len(windows.calibration) * checkpoint.layers if method.overlap else 0
        plan = Plan(
            schema_version=2,
            indexcache=__version__,
            model=prepared.identity,
            tokens=_token_identity(recipe, windows, checkpoint.selection_width),
            run=_how_it_ran(this),
            search=search_record(findings, method, checkpoint.site_layers, _init_record(prepared.old, findings)),
            result=result(findings, goal, prepared.identity),
            heldout=heldout_record(findings.heldout),
            cost=cost(
                findings,
                evaluations,
                measure.count.layer_windows + overlap_layers,
                evaluations * windows.length,
                len(windows.calibration),
                checkpoint.layers,
            ),
        )
        timing = this.timing()
        moved = processes.main_does(lambda: save_run(out, plan, frozen_bytes(windows), timing))
    return SearchOutcome(plan, out / PLAN_FILE, moved, timing)


def _how_it_ran(this: Sitting) -> RunIdentity:
    """Known as soon as a loss is, in whichever sitting that was.

    Raises:
        JournalError: the journal has losses and does not say how they came about.
    """
    if this.kept.run is None:
        raise JournalError(f"journal {str(this.path)!r} does not say how the model ran", hint="begin anew")
    return this.kept.run


def _found(
    recipe: Recipe, goal: Goal, prepared: Prepared, this: Sitting, reporter: Reporter
) -> tuple[Method, Findings, Journaled]:
    """What the journal and, for what it lacks, the model say."""
    checkpoint, windows, overlap = prepared.checkpoint, prepared.windows, recipe.baselines == "overlap"
    kept, method = this.kept, prepared.method
    checked = kept.checked or not recipe.selfcheck
    if kept.window_evaluations and checked and (kept.overlap is not None or not overlap):
        with suppress(Unmeasured):
            method = replace(method, overlap=kept.overlap if overlap else None)
            measure = _journaled(this, prepared)
            return method, _run(measure, prepared, goal, method, _silent(measure)), measure
    if kept.run is not None:
        processes.use_threads(kept.run.threads)
    tokens = windows.calibration.flatten().tolist() if recipe.selfcheck else ()
    loaded = load_for(recipe, checkpoint, windows.length, reporter, tokens)
    this.ran(run_identity(loaded))
    if recipe.selfcheck:
        reporter.doing("checking on a short window that sharing works")
        guess = None if recipe.untrained else _guess(checkpoint, windows)
        self_check(loaded.model, checkpoint, tokens, guess)
        if not kept.checked:
            this.checked()
    model = evaluator(loaded, checkpoint, windows, recipe.max_rows, reporter)
    if overlap:
        if kept.overlap is None:
            this.overlaps(model.overlap(CALIBRATION, checkpoint.selection_width))
        method = replace(method, overlap=kept.overlap)
    expected = expected_for(recipe, checkpoint, goal, method, reporter)
    reporter.begin(expected.window_evaluations, "window evaluations", guessed=True)
    measure = _journaled(this, prepared, model, reporter)
    deepest = method.deepest(goal, len(checkpoint.site_layers))
    return method, _run(measure, prepared, goal, method, _told(reporter, checkpoint, deepest, measure)), measure


def _guess(checkpoint: Checkpoint, windows: Windows) -> Guess:
    """What the tokens' frequencies in all other windows say of the first one's beginning."""
    first = windows.calibration[0][: max(_FEW_TOKENS, tokens_of_check(checkpoint.selection_width))]
    others = np.concatenate([windows.calibration[1:].ravel(), windows.heldout.ravel()])
    return Guess(first.tolist(), unigram_loss(first[1:], others, checkpoint.vocabulary))


def _journaled(
    this: Sitting, prepared: Prepared, model: Evaluator | None = None, reporter: Reporter | None = None
) -> Journaled:
    checkpoint, windows = prepared.checkpoint, prepared.windows
    groups = {name: len(windows.group(name)) for name in (CALIBRATION, HELD_OUT)}
    shape = Shape(checkpoint.site_layers, checkpoint.layers, groups[CALIBRATION], groups[HELD_OUT])
    told = reporter.skip if reporter is not None else lambda losses: None
    return Journaled(this.kept, groups, LayerCount(shape), model, this.write, told)


def _run(measure: Journaled, prepared: Prepared, goal: Goal, method: Method, told: Told) -> Findings:
    windows, site_layers = prepared.windows, prepared.checkpoint.site_layers
    return run_search(
        measure,
        labels=windows.length - 1,
        documents={name: windows.documents(name) for name in (CALIBRATION, HELD_OUT)},
        sites=len(site_layers),
        goal=goal,
        method=method,
        told=told,
        layer_windows=lambda: measure.count.layer_windows,
        site_layers=site_layers,
    )


def _init_record(old: Plan | None, findings: Findings) -> InitRecord | None:
    if old is None:
        return None
    digest = hashlib.sha256(old.as_json().encode()).hexdigest()
    return InitRecord(plan_sha256=digest, changed_steps=changed_steps(old, findings.steps))


def _token_identity(recipe: Recipe, windows: Windows, width: int) -> TokenIdentity:
    source = text_source(recipe)
    return TokenIdentity(
        sha256=token_sha256(windows),
        file=TOKENS_FILE,
        dataset=source.dataset,
        subset=source.subset,
        split=source.split,
        column=source.column,
        revision=source.revision,
        seed=recipe.seed,
        window=windows.length,
        windows=len(windows.calibration),
        heldout_windows=len(windows.heldout),
        informative_positions=informative_positions(windows.length, width),
        labels=windows.length - 1,
        informative_share=round(informative_share(windows.length, width), 6),
    )


def _silent(measure: Journaled) -> Told:
    return Told(step=lambda step: measure.follow(step.pattern))


def _told(reporter: Reporter, checkpoint: Checkpoint, deepest: int, measure: Journaled) -> Told:
    sites, layers = len(checkpoint.site_layers), checkpoint.site_layers
    last, began = sites - deepest, time.monotonic()

    def step(step: Step) -> None:
        number = sites - step.pattern.kept
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

    return Told(step, swap)


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
    console.print(table)
    print_line(console, f"pattern  {result.layer_pattern}")
    if plan.search.pinned_layers:
        print_line(console, f"pinned   layers {layer_ranges(plan.search.pinned_layers)}, in uniform too")
    print_line(
        console,
        f"{tokens.windows} calibration and {tokens.heldout_windows} held-out windows of {tokens.window} tokens; "
        f"{timing.seconds:.0f} s" + (f" in {timing.sittings} sittings" if timing.sittings > 1 else ""),
    )
    cost = plan.cost
    print_line(
        console,
        f"{cost.search_layer_windows} layer-windows to choose, {cost.fewer:.1f} times fewer than Algorithm 1",
    )
    print_line(console, f"report   {folder / 'report.html'}")
