"""Checks what a search or an evaluation is asked for, and reads it, before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...calibrate.sources import TextSource, read_documents
from ...calibrate.windows import WindowRequest, Windows, check_length, informative_share, pack
from ...dsa.checkpoint.architectures import remote_code_sha256
from ...dsa.checkpoint.config import (
    Checkpoint,
    Trust,
    config_sha256,
    has_nested_config,
    load_tokenizer,
    open_checkpoint,
)
from ...dsa.checkpoint.load import check_stored
from ...dsa.checkpoint.quantised import check_format
from ...dsa.checkpoint.weights import WeightsHash, identify_weights
from ...errors import DatasetError, IdentityError, ModelError, SettingError, WindowError
from ...evaluate import CALIBRATION, HELD_OUT
from ...recipes.schema import Recipe
from ...search.cost import Shape
from ...search.estimate import Expected, expected_cost
from ...search.goal import Goal, Method
from ...search.plan.file import read_plan
from ...search.plan.older import old_order
from ...search.plan.schema import ModelIdentity, Plan, TokenIdentity
from ...search.stages import pinned_sites, stage_sizes
from ...system import processes
from ...system.console import Reporter
from ...system.files import check_writable

_SMALL_SHARE = 0.5
_DEFAULT_WINDOW_IN_SELECTIONS = 4


@dataclass(frozen=True)
class Intended:
    """What is to be searched and how: known from the settings and the checkpoint's config.

    Args:
        length: tokens per window.
        old: the plan to start from.
    """

    checkpoint: Checkpoint
    length: int
    method: Method
    old: Plan | None


@dataclass(frozen=True)
class Prepared(Intended):
    """What a search needs besides the loaded model; all of it checked."""

    windows: Windows
    identity: ModelIdentity


def intend(recipe: Recipe, goal: Goal, trust: Trust, reporter: Reporter) -> Intended:
    """Reads the checkpoint's config and checks the settings against it.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    checkpoint = open_checkpoint(required(recipe.model, "model"), recipe.revision, trust)
    announce(checkpoint, reporter)
    if not (checkpoint.family or recipe.selfcheck):
        reporter.warn("with --no-selfcheck nothing shows that sharing works in this model")
    length = window_length(recipe, checkpoint, reporter)
    old, method = search_method(recipe, checkpoint, goal)
    return Intended(checkpoint, length, method, old)


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


def prepare(recipe: Recipe, goal: Goal, out: Path, trust: Trust, reporter: Reporter) -> Prepared:
    """Reads the checkpoint's config and the text, and checks whatever can be checked without weights.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    required(recipe.model, "model")  # named before the text, if both are missing
    source = text_source(recipe)
    intended = intend(recipe, goal, trust, reporter)
    checkpoint, length = intended.checkpoint, intended.length
    check_format(checkpoint)
    processes.main_does(lambda: check_writable(out))
    request = WindowRequest(length, recipe.windows, recipe.heldout, recipe.seed)
    reporter.doing(f"reading {source.dataset}")
    windows = processes.main_does(lambda: _build_windows(checkpoint, source, request, reporter))
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    processes.main_does(lambda: check_stored(checkpoint))
    identity = processes.main_does(lambda: model_identity(checkpoint, recipe.weights_hash))
    reporter.say(f"{recipe.windows} calibration and {recipe.heldout} held-out windows of {length} tokens")
    return Prepared(**vars(intended), windows=windows, identity=identity)


def search_method(recipe: Recipe, checkpoint: Checkpoint, goal: Goal) -> tuple[Plan | None, Method]:
    """The older plan to start from, if any, and how the recipe wants this checkpoint searched.

    Raises:
        SettingError: settings that do not go together.
        PlanError: the older plan is for a model with other sites.
    """
    old = read_plan(Path(recipe.init)) if recipe.init else None
    if old is not None and recipe.strategy != "fast":
        raise SettingError(
            f"an older plan gives no head start to the {recipe.strategy} strategy",
            hint="give --strategy fast, or leave --init out",
        )
    method = Method(
        strategy=recipe.strategy,
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
        order=old_order(old, checkpoint.site_layers) if old else (),
    )
    method.check(goal, len(checkpoint.site_layers))
    return old, method


def required(value: str | None, name: str) -> str:
    """``value``, which the options or the recipe have to give.

    Raises:
        SettingError: they do not.
    """
    if not value:
        raise SettingError(f"no {name} was given", hint=f"give --{name}, or a recipe that names one with --recipe")
    return value


def window_length(recipe: Recipe, checkpoint: Checkpoint, reporter: Reporter) -> int:
    """Tokens per window; warns where few of a window's positions can tell patterns apart.

    Raises:
        ModelError: how many keys its indexers select is not known.
        WindowError: too short to tell any apart, or longer than the model's positions.
    """
    width = checkpoint.selection_width
    if not width:
        raise ModelError(
            f"how many keys an indexer of {checkpoint.model_id!r} selects is not known, as its config names no "
            "index_topk: nothing tells windows apart in which all patterns measure the same",
            hint="if you know it, add it to config.json as index_topk: the self-check tests whether it is so",
        )
    length = recipe.window or _DEFAULT_WINDOW_IN_SELECTIONS * width
    check_length(length, width)
    check_positions(checkpoint, length, recipe.beyond_positions, reporter)
    share = informative_share(length, width)
    if share < _SMALL_SHARE:
        reporter.warn(
            f"only {share:.1%} of the positions in a window of {length} are informative (indexers choose where "
            f"a query sees more than {width} keys); a window of {_DEFAULT_WINDOW_IN_SELECTIONS * width} or more "
            "tells patterns apart better"
        )
    return length


def check_positions(checkpoint: Checkpoint, length: int, beyond: bool, reporter: Reporter) -> None:
    """Refuses windows longer than the model's positions, or warns of them where they were asked for.

    Raises:
        WindowError: too long, and not asked for.
    """
    longest = checkpoint.longest
    if longest is None or length <= longest:
        return
    what = f"windows of {length} tokens are longer than the model's {longest} positions"
    if not beyond:
        raise WindowError(what, hint="lower --window, or allow it with --beyond-positions")
    reporter.warn(f"{what}: losses at the end of them are not what the model was trained for")


def text_source(recipe: Recipe) -> TextSource:
    """Where the recipe's calibration text is."""
    return TextSource(
        dataset=required(recipe.dataset, "dataset"),
        subset=recipe.dataset_subset,
        split=recipe.dataset_split,
        column=recipe.column,
        revision=recipe.dataset_revision,
    )


def _build_windows(
    checkpoint: Checkpoint, source: TextSource, request: WindowRequest, reporter: Reporter
) -> Windows:
    tokenizer = load_tokenizer(checkpoint)
    documents = read_documents(source, tokenizer, request.seed)
    windows = pack(documents, tokenizer, request)
    for note in documents.notes:
        reporter.say(f"dataset {source.dataset!r}: {note}")
    largest = max(int(windows.group(name).max(initial=0)) for name in (CALIBRATION, HELD_OUT))
    if largest >= checkpoint.vocabulary:
        raise ModelError(
            f"the tokenizer of {checkpoint.model_id!r} gives id {largest}, but the model knows "
            f"{checkpoint.vocabulary}",
            hint="the tokenizer files are of another model",
        )
    return windows


def model_identity(checkpoint: Checkpoint, wanted: Literal["auto"] | WeightsHash) -> ModelIdentity:
    """What a plan says of the checkpoint it is for; hashes its weights in the way ``wanted``."""
    kind, digest = identify_weights(checkpoint, wanted)
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
        weights_hash=kind,
        weights_sha256=digest,
        code_sha256=remote_code_sha256(checkpoint.config, checkpoint.folder, checkpoint.trust.remote_code),
        nested_config=has_nested_config(checkpoint),
    )


def plans_checkpoint(plan: Plan, model_id: str | None, trust: Trust) -> Checkpoint:
    """The checkpoint that a plan names, or the one that ``model_id`` says has its place.

    Raises:
        ModelError: nothing there; the hint says how to name another place.
    """
    try:
        return open_checkpoint(model_id or plan.model.id, plan.model.revision if model_id is None else None, trust)
    except ModelError as error:
        if model_id is None:
            error.hint = "the plan names it so: say where the checkpoint is now with --model"
        raise


def check_tokens(planned: TokenIdentity, windows: Windows, checkpoint: Checkpoint) -> None:
    """Compares frozen tokens with what the plan says of them, and with what the model knows.

    Raises:
        IdentityError: other windows than the plan's; names what differs.
        DatasetError: ids that the model does not know.
    """
    found = (windows.length, len(windows.calibration), len(windows.heldout))
    names = ("window", "windows", "heldout_windows")
    for name, number in zip(names, found, strict=True):
        if getattr(planned, name) != number:
            raise IdentityError(f"the frozen tokens have a {name} of {number}, the plan {getattr(planned, name)}")
    largest = max(int(windows.group(name).max(initial=0)) for name in (CALIBRATION, HELD_OUT))
    if largest >= checkpoint.vocabulary:
        raise DatasetError(f"the frozen tokens hold id {largest}, but the model knows {checkpoint.vocabulary}")


def check_identity(planned: ModelIdentity, found: ModelIdentity) -> None:
    """Compares a plan's checkpoint with the one at hand.

    Raises:
        IdentityError: names the first field that differs, and both values.
    """
    for field in ("model_type", "layers", "site_layers", "config_sha256", "weights_sha256", "code_sha256"):
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


def expected_for(
    recipe: Recipe, checkpoint: Checkpoint, goal: Goal, method: Method, reporter: Reporter
) -> Expected:
    reporter.doing("counting what the search will run")
    shape = Shape(checkpoint.site_layers, checkpoint.layers, recipe.windows, recipe.heldout, recipe.max_rows)
    return expected_cost(shape, goal, method, recipe.baselines == "overlap")
