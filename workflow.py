"""The jobs behind the commands, from checked input to written files: search and eval."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from . import __version__
from .calibrate.frozen import frozen_bytes, thaw, token_sha256
from .calibrate.sources import TextSource, read_documents
from .calibrate.windows import (
    WindowRequest,
    Windows,
    check_length,
    informative_positions,
    informative_share,
    pack,
)
from .dsa import processes
from .dsa.capacity import path_budget, row_bytes, rows_that_fit
from .dsa.checkpoint import Checkpoint, config_sha256, load_tokenizer, open_checkpoint, weights_sha256
from .dsa.evaluation import Evaluator
from .dsa.loading import device_kinds, load_model
from .dsa.losses import PatternLosses
from .dsa.paths import PathMemory
from .errors import DatasetError, IdentityError, MeasurementError, ModelError, SettingError, WindowError
from .groups import CALIBRATION, HELD_OUT, SPOKEN
from .progress import Reporter
from .recipes.schema import Recipe
from .search.blocks import check_blocks
from .search.findings import Findings, Goal, Method, Told, compare, planned_evaluations, run_search
from .search.folder import PLAN_FILE, TOKENS_FILE, check_writable, save_run
from .search.greedy import Step
from .search.plan import (
    InitRecord,
    Measured,
    ModelIdentity,
    Plan,
    RunIdentity,
    Timing,
    TokenIdentity,
    read_plan,
)
from .search.record import cost, heldout_record, result, search_record
from .search.refine import Swap
from .search.warm import changed_steps, priorities

_SMALL_SHARE = 0.5
_DEFAULT_WINDOW_IN_SELECTIONS = 4
_VERSIONS = ("torch", "transformers", "accelerate", "datasets", "tokenizers")


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search: the plan, where it was written, and what it moved out of the way."""

    plan: Plan
    path: Path
    moved: Path | None


def search(recipe: Recipe, goal: Goal, out: Path, trust_remote_code: bool, reporter: Reporter) -> SearchOutcome:
    """Searches a checkpoint and writes the run to ``out``.

    Everything that can be checked without the weights is checked before they are loaded.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    began, clock = _now(), time.monotonic()
    prepared = _prepare(recipe, goal, out, trust_remote_code, reporter)
    checkpoint, windows, method = prepared.checkpoint, prepared.windows, prepared.method
    reporter.doing(f"loading {checkpoint.model_id}")
    model = load_model(checkpoint, recipe.dtype, recipe.device_map)
    evaluator = _evaluator(model, checkpoint, windows, recipe.max_rows, reporter)
    if recipe.baselines == "overlap":
        method = replace(method, overlap=evaluator.overlap(CALIBRATION, checkpoint.selection_width))
    findings = _run(evaluator, checkpoint, windows, goal, method, reporter)
    evaluations, tokens = evaluator.evaluations, evaluator.window_evaluations * windows.length
    plan = Plan(
        schema_version=1,
        indexcache=__version__,
        model=prepared.identity,
        tokens=_token_identity(recipe, windows, checkpoint.selection_width),
        run=_run_identity(model),
        search=search_record(findings, method, checkpoint.site_layers, _init_record(prepared.old, findings)),
        result=result(findings, goal, prepared.identity),
        heldout=heldout_record(findings.heldout),
        cost=cost(
            findings, evaluations, evaluator.layer_windows(), tokens, len(windows.calibration), checkpoint.layers
        ),
        timing=Timing(
            started=began,
            finished=_now(),
            seconds=round(time.monotonic() - clock, 1),
            processes=processes.process_count(),
        ),
    )
    moved = processes.main_does(lambda: save_run(out, plan, frozen_bytes(windows)))
    return SearchOutcome(plan, out / PLAN_FILE, moved)


@dataclass(frozen=True)
class _Prepared:
    """What a search needs besides the loaded model; all of it checked."""

    checkpoint: Checkpoint
    windows: Windows
    identity: ModelIdentity
    method: Method
    old: Plan | None


def _prepare(recipe: Recipe, goal: Goal, out: Path, trust_remote_code: bool, reporter: Reporter) -> _Prepared:
    model_id, source = _required(recipe.model, "model"), _source(recipe)
    checkpoint = open_checkpoint(model_id, recipe.revision, trust_remote_code)
    length = _window_length(recipe, checkpoint, reporter)
    old = read_plan(Path(recipe.init)) if recipe.init else None
    method = _method(recipe, checkpoint, goal, old)
    request = WindowRequest(length, recipe.windows, recipe.heldout, recipe.seed)
    reporter.doing(f"reading {source.dataset}")
    windows = processes.main_does(lambda: _build_windows(checkpoint, source, request))
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    identity = processes.main_does(lambda: _identity(checkpoint))
    processes.main_does(lambda: check_writable(out))
    reporter.say(f"{recipe.windows} calibration and {recipe.heldout} held-out windows of {length} tokens")
    return _Prepared(checkpoint, windows, identity, method, old)


def _run(
    evaluator: Evaluator,
    checkpoint: Checkpoint,
    windows: Windows,
    goal: Goal,
    method: Method,
    reporter: Reporter,
) -> Findings:
    sites = len(checkpoint.site_layers)
    planned = planned_evaluations(sites, goal) * len(windows.calibration) + 3 * len(windows.heldout)
    reporter.begin(planned, "window evaluations")
    return run_search(
        evaluator,
        labels=windows.length - 1,
        documents={name: windows.documents(name) for name in (CALIBRATION, HELD_OUT)},
        sites=sites,
        goal=goal,
        method=method,
        told=_told(reporter, checkpoint, goal, evaluator),
        layer_windows=evaluator.layer_windows,
    )


def _method(recipe: Recipe, checkpoint: Checkpoint, goal: Goal, old: Plan | None) -> Method:
    if old is not None and recipe.strategy != "fast":
        raise SettingError(
            f"an older plan gives no head start to the {recipe.strategy} strategy",
            hint="give --strategy fast, or leave --init out",
        )
    if recipe.strategy == "blocks":
        check_blocks(recipe.blocks, len(checkpoint.site_layers), goal.deepest(len(checkpoint.site_layers)))
    return Method(
        strategy=recipe.strategy,
        standard_errors=recipe.standard_errors,
        blocks=recipe.blocks,
        refine_rounds=recipe.refine_rounds,
        priorities=priorities(old, checkpoint.site_layers) if old else {},
    )


def _init_record(old: Plan | None, findings: Findings) -> InitRecord | None:
    if old is None:
        return None
    digest = hashlib.sha256(old.as_json().encode()).hexdigest()
    return InitRecord(plan_sha256=digest, changed_steps=changed_steps(old, findings.steps))


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
    folder: Path,
    group: str,
    max_delta: float | None,
    model_id: str | None,
    device_map: str | None,
    trust_remote_code: bool,
    reporter: Reporter,
) -> EvalOutcome:
    """Measures a plan on its own frozen tokens and holds it to ``max_delta``.

    Raises:
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        IndexcacheError: one of its other kinds.
    """
    windows = thaw(folder / plan.tokens.file, plan.tokens.sha256)
    if not len(windows.group(group)):
        raise DatasetError(f"the plan has no {SPOKEN[group]} windows", hint="measure it with --on calibration")
    revision = plan.model.revision if model_id is None else None
    checkpoint = _plans_checkpoint(plan, model_id, revision, trust_remote_code)
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    _check_identity(plan.model, processes.main_does(lambda: _identity(checkpoint)))
    reporter.doing(f"loading {checkpoint.model_id}")
    model = load_model(checkpoint, plan.run.dtype, device_map)
    evaluator = _evaluator(model, checkpoint, windows, None, reporter)
    reporter.begin(3 * len(windows.group(group)), "window evaluations")
    found = heldout_record(compare(evaluator, group, windows.length - 1, windows.documents(group), plan.pattern))
    if found is None:
        raise MeasurementError(f"a loss on the {SPOKEN[group]} windows is NaN or infinite")
    return EvalOutcome(
        group=group,
        windows=len(windows.group(group)),
        baseline_loss=found.baseline_loss,
        plan=found.plan,
        uniform=found.uniform,
        max_delta=max_delta,
        passed=None if max_delta is None else found.plan.delta <= max_delta,
    )


def _plans_checkpoint(plan: Plan, model_id: str | None, revision: str | None, trust: bool) -> Checkpoint:
    try:
        return open_checkpoint(model_id or plan.model.id, revision, trust)
    except ModelError as error:
        if model_id is None:
            error.hint = "the plan names it so: say where the checkpoint is now with --model"
        raise


def _required(value: str | None, name: str) -> str:
    if not value:
        raise SettingError(f"no {name} was given", hint=f"give --{name}, or a recipe that names one with --recipe")
    return value


def _window_length(recipe: Recipe, checkpoint: Checkpoint, reporter: Reporter) -> int:
    width = checkpoint.selection_width
    length = recipe.window or _DEFAULT_WINDOW_IN_SELECTIONS * width
    check_length(length, width)
    longest = getattr(checkpoint.config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise WindowError(
            f"windows of {length} tokens are longer than the model's {longest} positions",
            hint="lower --window",
        )
    share = informative_share(length, width)
    if share < _SMALL_SHARE:
        reporter.warn(
            f"only {share:.1%} of the positions in a window of {length} are informative (the indexer selects "
            f"{width}); a window of {_DEFAULT_WINDOW_IN_SELECTIONS * width} or more tells patterns apart better"
        )
    return length


def _source(recipe: Recipe) -> TextSource:
    return TextSource(
        dataset=_required(recipe.dataset, "dataset"),
        subset=recipe.dataset_subset,
        split=recipe.dataset_split,
        column=recipe.column,
        revision=recipe.dataset_revision,
    )


def _build_windows(checkpoint: Checkpoint, source: TextSource, request: WindowRequest) -> Windows:
    tokenizer = load_tokenizer(checkpoint)
    windows = pack(read_documents(source, tokenizer, request.seed), tokenizer, request)
    largest = max(int(windows.group(name).max(initial=0)) for name in (CALIBRATION, HELD_OUT))
    if largest >= checkpoint.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {checkpoint.model_id!r} gives id {largest}, but the model knows "
            f"{checkpoint.config.vocab_size}",
            hint="the tokenizer files are of another model",
        )
    return windows


def _evaluator(
    model: Any, checkpoint: Checkpoint, windows: Windows, max_rows: int | None, reporter: Reporter
) -> Evaluator:
    together, width = processes.process_count(), checkpoint.selection_width
    device = processes.this_device()
    memory = PathMemory(checkpoint.site_layers, len(windows.calibration), path_budget(device, together))
    size = row_bytes(checkpoint.config, windows.length, model.dtype.itemsize, width)
    return Evaluator(
        PatternLosses(model, checkpoint.site_layers, blind=width, memory=memory),
        {name: windows.group(name).tolist() for name in (CALIBRATION, HELD_OUT)},
        max_rows or rows_that_fit(device, size, together),
        on_window=lambda patterns: reporter.advance(patterns * together),
    )


def _identity(checkpoint: Checkpoint) -> ModelIdentity:
    return ModelIdentity(
        id=checkpoint.model_id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        model_type=checkpoint.config.model_type,
        layers=checkpoint.layers,
        site_layers=list(checkpoint.site_layers),
        shared_layers=list(checkpoint.shared_layers),
        selection_width=checkpoint.selection_width,
        config_sha256=config_sha256(checkpoint),
        weights_sha256=weights_sha256(checkpoint),
    )


def _check_identity(planned: ModelIdentity, found: ModelIdentity) -> None:
    for field in ("model_type", "layers", "site_layers", "config_sha256", "weights_sha256"):
        old, new = getattr(planned, field), getattr(found, field)
        if old != new:
            raise IdentityError(
                f"the plan was made for another model than {found.id!r}: {field} is {_short(new)}, "
                f"the plan has {_short(old)}",
                hint="search this checkpoint, or give the plan's own with --model",
            )


def _short(value: object) -> str:
    text = f"{len(value)} layers" if isinstance(value, list) else str(value)
    return text[:12] if len(text) == 64 else text


def _token_identity(recipe: Recipe, windows: Windows, width: int) -> TokenIdentity:
    source = _source(recipe)
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


def _run_identity(model: Any) -> RunIdentity:
    versions = {"python": python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return RunIdentity(
        dtype=str(model.dtype).removeprefix("torch."), device=device_kinds(model), versions=versions
    )


def _told(reporter: Reporter, checkpoint: Checkpoint, goal: Goal, evaluator: Evaluator) -> Told:
    sites, layers = len(checkpoint.site_layers), checkpoint.site_layers
    last, began = sites - goal.deepest(sites), time.monotonic()

    def step(step: Step) -> None:
        number = sites - step.pattern.kept
        tie = f", tied with {len(step.tied)} more" if step.tied else ""
        reporter.say(
            f"step {number}/{last}: dropped layer {layers[step.removed]}, loss {step.evaluation.loss:.4f}{tie}, "
            f"{time.monotonic() - began:.0f} s"
        )
        evaluator.follow(step.pattern)

    def swap(swap: Swap) -> None:
        reporter.say(
            f"refined: layer {layers[swap.restored]} full instead of {layers[swap.removed]}, "
            f"loss {swap.evaluation.loss:.5f}"
        )

    return Told(step, swap)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
