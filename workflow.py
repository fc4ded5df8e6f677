"""The jobs behind the commands, from checked input to written files: search, estimate and eval."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import __version__
from .calibrate.frozen import frozen_bytes, thaw, token_sha256
from .calibrate.guess import unigram_loss
from .calibrate.windows import Windows, informative_positions, informative_share
from .dsa import processes
from .dsa.backends import Backends
from .dsa.checkpoint import Checkpoint, Trust
from .dsa.competence import Guess
from .dsa.evaluation import Evaluator
from .dsa.loading import Placement, device_kinds
from .dsa.losses import PatternLosses
from .dsa.selfcheck import check_tokens as tokens_of_check
from .dsa.selfcheck import self_check
from .errors import DatasetError, JournalError, MeasurementError, ModelError, OutputError, PlanError
from .files import write_atomically
from .groups import CALIBRATION, HELD_OUT, SPOKEN
from .identity import search_identity
from .measuring import Loaded, evaluator, load
from .pattern import Pattern
from .preparation import (
    Intended,
    Prepared,
    announce,
    check_identity,
    check_tokens,
    intend,
    model_identity,
    plans_checkpoint,
    prepare,
    text_source,
)
from .progress import Reporter
from .recipes.schema import Recipe
from .resuming import Sitting, sitting, stops_told
from .search.checks import Check, check_file, with_check
from .search.estimate import Expected, LayerCount, Shape, expected_cost
from .search.findings import Findings, Goal, Method, Told, compare, run_search
from .search.folder import PLAN_FILE, TOKENS_FILE, has_report, render_beside, save_run
from .search.greedy import Step
from .search.journaled import Journaled, Unmeasured
from .search.plan import InitRecord, Measured, Plan, RunIdentity, TokenIdentity
from .search.record import cost, heldout_record, result, search_record
from .search.refine import Swap
from .search.timing import Timing, now
from .search.warm import changed_steps
from .versions import library_versions

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
    loaded = _load(recipe, checkpoint, windows.length, reporter, tokens)
    this.ran(_run_identity(loaded))
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
    expected = _expected(recipe, checkpoint, goal, method, reporter)
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


def _load(
    recipe: Recipe, checkpoint: Checkpoint, length: int, reporter: Reporter, tried_on: Sequence[int] = ()
) -> Loaded:
    wanted = Backends(recipe.indexer, recipe.attention)
    placement = Placement(recipe.device_map, recipe.offload_folder)
    return load(checkpoint, recipe.dtype, placement, wanted, length, reporter, tried_on)


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


def _expected(recipe: Recipe, checkpoint: Checkpoint, goal: Goal, method: Method, reporter: Reporter) -> Expected:
    reporter.doing("counting what the search will run")
    shape = Shape(checkpoint.site_layers, checkpoint.layers, recipe.windows, recipe.heldout, recipe.max_rows)
    return expected_cost(shape, goal, method, recipe.baselines == "overlap")


def _init_record(old: Plan | None, findings: Findings) -> InitRecord | None:
    if old is None:
        return None
    digest = hashlib.sha256(old.as_json().encode()).hexdigest()
    return InitRecord(plan_sha256=digest, changed_steps=changed_steps(old, findings.steps))


@dataclass(frozen=True)
class EstimateOutcome:
    """What a search is expected to cost.

    Args:
        layer_seconds: of one layer on one window, full and shared; None where none was timed.
    """

    model: str
    sites: int
    layers: int
    kept: int
    strategy: str
    windows: int
    heldout: int
    window: int
    expected: Expected
    layer_seconds: tuple[float, float] | None

    @property
    def seconds(self) -> float | None:
        """Expected time of the measurements, all processes kept busy."""
        if self.layer_seconds is None:
            return None
        full, shared = self.layer_seconds
        own = self.expected.layer_windows - self.expected.shared_layer_windows
        return (own * full + self.expected.shared_layer_windows * shared) / processes.process_count()


def estimate(
    recipe: Recipe, goal: Goal, out: Path | None, trust: Trust, timed: bool, reporter: Reporter
) -> EstimateOutcome:
    """What a search will cost: counted from the config, then timed on one window of any tokens.

    Args:
        recipe: settings of the search.
        goal: how far it is to go.
        out: check all that the search would check, the text and this folder too; None checks the model alone.
        trust: what of the checkpoint may run as a program.
        timed: load the weights and time a window.
        reporter: told of progress.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    if out is not None:
        intended: Intended = prepare(recipe, goal, out, trust, reporter)
    else:
        intended = intend(recipe, goal, trust, reporter)
    checkpoint, method, length = intended.checkpoint, intended.method, intended.length
    expected = _expected(recipe, checkpoint, goal, method, reporter)
    reporter.say(
        f"about {expected.search_layer_windows:,} layer-windows of {length} tokens to choose, where Algorithm 1 "
        f"takes {expected.algorithm_1_layer_windows:,}; about {expected.layer_windows:,} in all"
    )
    return EstimateOutcome(
        model=checkpoint.model_id,
        sites=len(checkpoint.site_layers),
        layers=checkpoint.layers,
        kept=method.deepest(goal, len(checkpoint.site_layers)),
        strategy=method.strategy,
        windows=recipe.windows,
        heldout=recipe.heldout,
        window=length,
        expected=expected,
        layer_seconds=_time_layers(checkpoint, recipe, length, reporter) if timed else None,
    )


def _time_layers(checkpoint: Checkpoint, recipe: Recipe, length: int, reporter: Reporter) -> tuple[float, float]:
    """Seconds of a full and of a shared layer on one window, its loss included; a first run warms up."""
    try:
        model = _load(recipe, checkpoint, length, reporter).model
    except ModelError as error:
        error.hint = error.hint or "--no-time counts without weights"
        raise
    reporter.doing("timing a window")
    losses = PatternLosses(model, checkpoint.site_layers)
    tokens = [number % checkpoint.vocabulary for number in range(length)]
    measure, sites = Evaluator(losses, {CALIBRATION: [tokens]}), len(checkpoint.site_layers)

    def seconds(pattern: Pattern) -> float:
        measure([pattern], CALIBRATION)
        began = time.perf_counter()
        measure([pattern], CALIBRATION)
        return (time.perf_counter() - began) / checkpoint.layers

    return seconds(Pattern.all_full(sites)), seconds(Pattern.from_full(sites, [0]))


@dataclass(frozen=True)
class EvalOutcome:
    """A plan measured again: losses on ``group`` of all full, the plan and uniform interleaving.

    ``passed`` is None where no limit was given.
    """

    group: str
    windows: int
    baseline_loss: float
    plan: Measured
    uniform: Measured
    max_delta: float | None
    passed: bool | None


def evaluate(
    plan: Plan,
    path: Path,
    group: str,
    max_delta: float | None,
    model_id: str | None,
    placement: Placement,
    trust: Trust,
    reporter: Reporter,
) -> EvalOutcome:
    """Measures the plan in the file ``path`` on its own frozen tokens and holds it to ``max_delta``.

    What was measured is kept beside the plan and shown in its report, where there is one.

    Raises:
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        IndexcacheError: one of its other kinds.
    """
    windows = thaw(path.parent / plan.tokens.file, plan.tokens.sha256)
    if not len(windows.group(group)):
        raise DatasetError(f"the plan has no {SPOKEN[group]} windows", hint="measure it with --on calibration")
    checkpoint = plans_checkpoint(plan, model_id, trust)
    announce(checkpoint, reporter)
    check_tokens(plan.tokens, windows, checkpoint)
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    check_identity(plan.model, processes.main_does(lambda: model_identity(checkpoint, plan.model.weights_hash)))
    ran = Backends(plan.run.indexer, plan.run.attention)
    processes.use_threads(plan.run.threads)
    loaded = load(checkpoint, plan.run.dtype, placement, ran, windows.length, reporter)
    measure = evaluator(loaded, checkpoint, windows, None, reporter)
    reporter.begin(3 * len(windows.group(group)), "window evaluations")
    labels, documents = windows.length - 1, windows.documents(group)
    found = heldout_record(compare(measure, group, labels, documents, plan.pattern, plan.pinned_sites))
    if found is None:
        raise MeasurementError(f"a loss on the {SPOKEN[group]} windows is NaN or infinite")
    run = _run_identity(loaded)
    check = Check(
        when=now(),
        model=checkpoint.model_id,
        device=run.device,
        dtype=run.dtype,
        windows=len(windows.group(group)),
        losses=found,
        max_delta=max_delta,
        passed=None if max_delta is None else found.plan.delta <= max_delta,
        versions=run.versions,
    )
    processes.main_does(lambda: _keep(plan, path, group, check, reporter))
    return EvalOutcome(
        group=group,
        windows=check.windows,
        baseline_loss=found.baseline_loss,
        plan=found.plan,
        uniform=found.uniform,
        max_delta=max_delta,
        passed=check.passed,
    )


def _keep(plan: Plan, path: Path, group: str, check: Check, reporter: Reporter) -> None:
    """Writes a check beside its plan and into the report; where that cannot be, its result is still printed."""
    try:
        write_atomically(check_file(path), with_check(plan, check_file(path), group, check).as_json())
        if has_report(path):
            render_beside(plan, path)
    except (OutputError, PlanError) as error:
        reporter.warn(f"what was measured is not kept beside the plan, or not in its report: {error}")


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


def _run_identity(loaded: Loaded) -> RunIdentity:
    return RunIdentity(
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=device_kinds(loaded.model),
        threads=processes.thread_count(),
        indexer=loaded.backends.indexer,
        attention=loaded.backends.attention,
        versions=library_versions(),
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
