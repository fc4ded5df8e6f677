"""Decides everything about a search once, before any weight is loaded: what is searched, on what, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from ...calibrate.probes import KINDS
from ...calibrate.sources import TextSource
from ...calibrate.windows import WindowRequest, Windows
from ...dsa.checkpoint.config import Checkpoint, Trust, open_checkpoint
from ...dsa.checkpoint.stored.weights import StoredWeights, find_weights
from ...dsa.distil.collect import trainable_family
from ...dsa.long.backends import Backends
from ...dsa.model.evaluator import COST_WINDOWS
from ...dsa.stream.formats.foreign import Foreign
from ...dsa.stream.formats.recognise import checkpoint_format
from ...dsa.stream.load import check_stored
from ...errors import ModelError, SettingError
from ...evaluate import CALIBRATION, HELD_OUT, HELD_OUT_PROBES, PROBES, REFINEMENT
from ...pattern import kept_sites
from ...recipes.schema import Recipe
from ...search.cost import Shape
from ...search.estimate import ExpectedCost, expected_cost
from ...search.goal import Goal, Method
from ...search.plan.file import read_plan
from ...search.plan.older import old_order, old_patterns
from ...search.plan.schema import ModelIdentity, Plan, TokenIdentity
from ...search.stages import pinned_sites, stage_sizes
from ...system import processes
from ...system.console import Reporter
from ...system.files import check_writable
from .identity import model_identity
from .measure import Running, running_on
from .settings import room_of
from .windows import ProbeRequest, build_windows, check_documents, check_window, default_window, token_identity

MOST_AUTO_WINDOWS = 128
_DEFAULT_REFINE_WINDOWS = 32
# Students of so many windows choose as those of more do; what they store takes memory at every layer.
_LEARNING_WINDOWS = 32


@dataclass(frozen=True)
class Intent:
    """What is to be searched and how: known from the settings and the checkpoint's config alone.

    Args:
        checkpoint: whose indexers are searched.
        length: tokens per window.
        window_counts: of calibration, held-out, refinement, held-out probes, and probes that choose.
        running: how the model is run.
        goal: how far to go and what to pick.
        method: how to go about it.
        measures_overlap: whether patterns that overlap alone would choose are measured too.
        self_checks: whether the loaded model is tried before it is searched.
        expects_training: whether a model that predicts no better than word frequencies is refused.
        older: the plan to start from.
    """

    checkpoint: Checkpoint
    length: int
    window_counts: tuple[int, int, int, int, int]
    running: Running
    goal: Goal
    method: Method
    measures_overlap: bool
    self_checks: bool
    expects_training: bool
    older: Plan | None

    @property
    def weighs_keys(self) -> bool:
        """Whether the loss on key tokens chooses, and so is measured on all windows."""
        return self.method.objective == "key-loss"

    def expected(self, reporter: Reporter, kept_states: int | None = None) -> ExpectedCost:
        """What the search will cost, where states are kept at ``kept_states`` layers; at every site by default."""
        reporter.doing("counting what the search will run")
        checkpoint = self.checkpoint
        shape = Shape(
            checkpoint.site_layers,
            checkpoint.layers,
            *self.window_counts,
            self.running.max_rows,
            COST_WINDOWS,
            checkpoint.shared_layers,
            kept_states,
            self.method.distils,
        )
        return expected_cost(shape, self.goal, self.method, self.measures_overlap)


@dataclass(frozen=True)
class Job(Intent):
    """A search ready to run: all that can be checked without loading the weights is checked.

    Args:
        windows: the tokens that losses are measured on.
        tokens: what the plan says of them.
        model: what the plan says of the checkpoint.
        weights: as they lie on disk, looked for once.
        folder: of the run.
    """

    windows: Windows
    tokens: TokenIdentity
    model: ModelIdentity
    weights: StoredWeights
    folder: Path


def intend(recipe: Recipe, goal: Goal, trust: Trust, reporter: Reporter) -> Intent:
    """Reads the checkpoint's config and checks the settings against it.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    room = room_of(vars(recipe))
    checkpoint = open_checkpoint(required(recipe.model, "model"), recipe.revision, trust)
    announce(checkpoint, reporter)
    if not (checkpoint.family or recipe.selfcheck):
        reporter.warn("with --no-selfcheck nothing shows that sharing works in this model")
    length = window_length(recipe, checkpoint, reporter)
    older, method = search_method(recipe, checkpoint, goal)
    if method.distils:
        trainable_family(checkpoint)
    _warn_of_nothing_to_drop(method, goal, len(checkpoint.site_layers), reporter)
    _warn_of_idle_options(recipe, goal, reporter)
    backends = Backends(recipe.indexer, recipe.attention)
    return Intent(
        checkpoint=checkpoint,
        length=length,
        window_counts=window_counts(recipe),
        running=running_on(checkpoint, recipe.dtype, room, backends, length, recipe.max_rows),
        goal=goal,
        method=method,
        measures_overlap=recipe.baselines == "overlap",
        self_checks=recipe.selfcheck,
        expects_training=not recipe.untrained,
        older=older,
    )


def announce(checkpoint: Checkpoint, reporter: Reporter) -> None:
    """Says what is assumed of an unknown family, what a config only claims, and which parts stay idle."""
    for line in checkpoint.unmeasured:
        reporter.warn(line)
    if checkpoint.assumed:
        reporter.warn(
            f"{checkpoint.model_id} is of type {checkpoint.text.model_type!r}, no family known here; assumed: "
            + "; ".join(checkpoint.assumed)
        )
    if not checkpoint.text_only:
        reporter.say(f"{checkpoint.model_id} is measured on text; its other towers are loaded and not run")


def prepare(recipe: Recipe, goal: Goal, folder: Path, trust: Trust, reporter: Reporter) -> Job:
    """Reads the checkpoint's config and the text, and checks whatever can be checked without weights.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    # By their cost: settings and config, the folder, the text, and last the weights, which take longest to hash.
    required(recipe.model, "model")  # named before the text, if both are missing
    source = text_source(recipe)
    intent = intend(recipe, goal, trust, reporter)
    checkpoint = intent.checkpoint
    known = checkpoint_format(checkpoint)
    if isinstance(known, Foreign):
        known.quantiser()  # says now whether its package is there
    processes.run_on_main(lambda: check_writable(folder))
    refinement = refinement_windows(recipe)
    learning = _LEARNING_WINDOWS if intent.method.distils else 0
    request = WindowRequest(
        intent.length, *intent.window_counts[:2], recipe.seed, refinement, recipe.windows == "auto", learning
    )
    probes = ProbeRequest(recipe.probes, recipe.objective == "mix", recipe.max_probe_delta is not None)
    reporter.doing(f"reading {source.dataset}")
    windows = processes.run_on_main(lambda: build_windows(checkpoint, source, request, probes, reporter))
    check_documents(windows, CALIBRATION, goal.max_delta, "--max-delta", recipe.gate)
    check_documents(windows, HELD_OUT_PROBES, recipe.max_probe_delta, "--max-probe-delta", recipe.gate)
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    weights = processes.run_on_main(lambda: find_weights(checkpoint))
    processes.run_on_main(lambda: check_stored(checkpoint, weights))
    model = processes.run_on_main(lambda: model_identity(checkpoint, weights, recipe.weights_hash))
    reporter.say(
        f"{len(windows.calibration)} calibration and {recipe.heldout} held-out windows of {intent.length} tokens"
    )
    groups = (CALIBRATION, HELD_OUT, REFINEMENT, HELD_OUT_PROBES, PROBES)
    counts = tuple(len(windows.group(name)) for name in groups)
    return Job(
        **{field.name: getattr(intent, field.name) for field in fields(Intent)} | {"window_counts": counts},
        windows=windows,
        tokens=token_identity(source, recipe.seed, windows, checkpoint.selection_width),
        model=model,
        weights=weights,
        folder=folder,
    )


def window_counts(recipe: Recipe) -> tuple[int, int, int, int, int]:
    """How many windows each group will have, in the order of ``Shape``'s fields."""
    windows = MOST_AUTO_WINDOWS if recipe.windows == "auto" else recipe.windows
    refinement = refinement_windows(recipe)
    mixed = windows + refinement if recipe.objective == "mix" else 0
    probes = recipe.probes * len(KINDS) if recipe.heldout else 0
    return windows, recipe.heldout, refinement, probes, mixed


def refinement_windows(recipe: Recipe) -> int:
    """How many windows refinement has of its own: as many as the search by default, none without refinement."""
    if not recipe.refine_rounds:
        return 0
    if recipe.refine_windows is not None:
        return recipe.refine_windows
    return _DEFAULT_REFINE_WINDOWS if recipe.windows == "auto" else recipe.windows


def search_method(recipe: Recipe, checkpoint: Checkpoint, goal: Goal) -> tuple[Plan | None, Method]:
    """The older plan to start from, if any, and how the recipe wants this checkpoint searched.

    Raises:
        SettingError: settings that do not go together.
        PlanError: the older plan is for a model with other sites.
    """
    older = read_plan(Path(recipe.init)) if recipe.init else None
    if recipe.strategy == "dp" and recipe.surrogate == "none":
        raise SettingError(
            "--strategy dp needs layer costs, but --surrogate is none", hint="give --surrogate error or fisher"
        )
    if older is not None and recipe.strategy != "fast":
        raise SettingError(
            f"an older plan gives no head start to the {recipe.strategy} strategy",
            hint="give --strategy fast, or leave --init out",
        )
    method = Method(
        strategy=recipe.strategy,
        objective=recipe.objective,
        # Costs under the checkpoint's own selections say nothing of those of distilled indexers.
        surrogate="none" if recipe.strategy == "distilled" else recipe.surrogate,
        confidence=recipe.confidence,
        gate=recipe.gate,
        curve=recipe.baselines != "uniform",
        auto_windows=recipe.windows == "auto",
        older=old_patterns(older) if older else {},
        pinned=pinned_sites(
            recipe.pin or (),
            stage_sizes(checkpoint.layers, recipe.pp_size, recipe.pp_layers),
            checkpoint.site_layers,
            checkpoint.shared_layers,
            checkpoint.layers,
        ),
        standard_errors=recipe.standard_errors,
        blocks=recipe.blocks,
        refine_rounds=recipe.refine_rounds,
        order=old_order(older, checkpoint.site_layers) if older else (),
    )
    method.check(goal, len(checkpoint.site_layers))
    return older, method


def _warn_of_nothing_to_drop(method: Method, goal: Goal, sites: int, reporter: Reporter) -> None:
    """Warns where less than all is asked for and every site stays full, and says what would drop one."""
    if goal.keep in (None, 1) or kept_sites(sites, goal.keep) < sites:
        return
    what = f"--keep {goal.keep:g} keeps all {sites} sites, as it is rounded up: the plan drops no indexer"
    if len(method.always_full(sites)) == sites:
        reporter.warn(f"{what}, as all have to stay full (the first and those pinned)")
        return
    # Rounded down, or it could keep them all again.
    largest = math.floor(10_000 * (sites - 1) / sites) / 10_000
    reporter.warn(f"{what}; give --keep {largest:g} or less")


def _warn_of_idle_options(recipe: Recipe, goal: Goal, reporter: Reporter) -> None:
    """Warns of what was set and does nothing, as what it belongs to was not."""
    if recipe.refine_windows is not None and not recipe.refine_rounds:
        reporter.warn("--refine-windows does nothing without --refine-rounds")
    if recipe.gate != Recipe.gate and goal.max_delta is None and recipe.max_probe_delta is None:
        reporter.warn("--gate does nothing without --max-delta or --max-probe-delta")


def required(value: str | None, name: str) -> str:
    """``value``, which the options or the recipe have to give.

    Raises:
        SettingError: they do not.
    """
    if not value:
        raise SettingError(f"no {name} was given", hint=f"give --{name}, or a recipe that names one with --recipe")
    return value


def window_length(recipe: Recipe, checkpoint: Checkpoint, reporter: Reporter) -> int:
    """Tokens per window, as asked for or by default; see ``check_window`` and ``default_window``.

    Raises:
        ModelError: how many keys its indexers select is not known.
        WindowError: too short to tell patterns apart, or longer than the model's positions.
    """
    width = checkpoint.selection_width
    if not width:
        raise ModelError(
            f"how many keys an indexer of {checkpoint.model_id!r} selects is not known, as its config names no "
            "index_topk: nothing tells windows apart in which all patterns measure the same",
            hint="if you know it, add it to config.json as index_topk: the self-check tests whether it is so",
        )
    length = recipe.window
    if length is None:
        backends = Backends(recipe.indexer, recipe.attention)
        length = default_window(checkpoint, recipe.dtype, backends, reporter)
    check_window(checkpoint, length, recipe.beyond_positions, reporter)
    return length


def text_source(recipe: Recipe) -> TextSource:
    """Where the recipe's calibration text is."""
    return TextSource(
        dataset=required(recipe.dataset, "dataset"),
        subset=recipe.dataset_subset,
        split=recipe.dataset_split,
        column=recipe.column,
        revision=recipe.dataset_revision,
    )
