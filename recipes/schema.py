"""What a recipe may say, and how a recipe file is found, read and checked."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from ..errors import SettingError
from ..system.documents import check_showable, first_fault
from ..system.files import home_expanded, is_there
from .numbers import decimal, fraction, numbers, window_count

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_FOLDER = Path(__file__).resolve().parent
_LARGEST_FILE = 64 << 10
# Code of strangers runs only where whoever starts the program asks for it, each time.
_COMMAND_LINE_ONLY = ("trust_remote_code", "allow_pickle")

Layer = Annotated[int, Ge(0), Lt(1000)]
Count = Annotated[int, Ge(0), Le(1_000_000)]
Number = Annotated[int, Ge(1), Le(1_000_000)]

MODEL, TEXT, SEARCH = "Model", "Text", "Search"
CONSTRAINTS, LONG, RUN = "Constraints", "Long windows", "Run"
GROUPS = (MODEL, TEXT, SEARCH, CONSTRAINTS, LONG, RUN)


class Option(NamedTuple):
    """How a field is presented: in which group of a command's options, and in which words.

    Args:
        group: one of ``GROUPS``.
        help: what it sets, as a phrase.
        default: what happens where it is not given, in words; the field's own default if None.
        parser: makes a value of what people write on the command line, where that is no plain value.
        metavar: what the value is called there.
    """

    group: str
    help: str
    default: str | None = None
    parser: Callable[[str], object] | None = None
    metavar: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a search. Options on the command line and INDEXCACHE_* variables win over them.

    A field's type, range, default and help stand here alone: options of commands are made from them
    (``commands/job/options.py``). The class is a plain one, so that ``--help`` need not import pydantic.
    """

    schema_version: Literal[1] = 1
    model: Annotated[str | None, Option(MODEL, "local folder or hub id of a DSA checkpoint")] = None
    revision: Annotated[str | None, Option(MODEL, "branch, tag or commit of a hub model")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(MODEL, "compute type; auto is the checkpoint's: search in the type that is served"),
    ] = "auto"
    max_memory: Annotated[
        str | None,
        Option(MODEL, "what weights may take on each device, e.g. 60GB; other layers stream", "what is free"),
    ] = None
    max_host_memory: Annotated[
        str | None,
        Option(
            MODEL,
            "what streamed layers may take of this host's memory; others are read from files",
            "four fifths of what is free",
        ),
    ] = None
    device_map: Annotated[
        str | None, Option(MODEL, "transformers' placement, of apply and bench alone, e.g. auto", "one device")
    ] = None
    offload_folder: Annotated[
        str | None, Option(MODEL, "where transformers puts weights that fit into no memory, with a device map")
    ] = None
    weights_hash: Annotated[
        Literal["auto", "sampled", "whole"],
        Option(MODEL, "what the plan is tied to: whole tensors, or blocks of each; auto is whole up to 2 GiB"),
    ] = "auto"
    selfcheck: Annotated[
        bool, Option(MODEL, "before measuring, check on one short window that sharing works in this model")
    ] = True
    fingerprint: Annotated[
        bool, Option(RUN, "write beside the plan what check needs to tell whether a server runs it")
    ] = True
    untrained: Annotated[
        bool,
        Option(MODEL, "go on with a model whose loss on the first window is no better than word frequencies give"),
    ] = False
    dataset: Annotated[str | None, Option(TEXT, "calibration text: local file or folder, or hub name")] = None
    dataset_subset: Annotated[str | None, Option(TEXT, "configuration of a dataset")] = None
    dataset_split: Annotated[str | None, Option(TEXT, "split of a dataset", "train, or all of a folder")] = None
    dataset_revision: Annotated[str | None, Option(TEXT, "branch, tag or commit of a hub dataset")] = None
    column: Annotated[str | None, Option(TEXT, "column with text or chat messages", "found by name")] = None
    window: Annotated[
        Annotated[int, Ge(2), Le(1 << 24)] | None,
        Option(TEXT, "tokens per window", "16 x the selection width, at most the model's positions, if that fits"),
    ] = None
    windows: Annotated[
        Number | Literal["auto"],
        Option(
            TEXT,
            "calibration windows; auto: 8, and twice as many until the plan is decided, up to 128",
            parser=window_count,
            metavar="COUNT",
        ),
    ] = 32
    heldout: Annotated[Count, Option(TEXT, "held-out windows, from other documents")] = 16
    refine_windows: Annotated[
        Count | None,
        Option(TEXT, "windows for refinement alone, from other documents", "as many as calibration windows"),
    ] = None
    probes: Annotated[
        Count,
        Option(TEXT, "probes of each kind on which the plan is checked: recall from far away; 0 for none"),
    ] = 4
    seed: Annotated[
        Annotated[int, Ge(0), Lt(1 << 63)], Option(TEXT, "order of documents and choice of windows")
    ] = 0
    keep: Annotated[
        float | None,
        Option(
            SEARCH,
            "fraction of sites that stay full: above 0 and at most 1, e.g. 0.25, 25% or 1/4",
            parser=fraction,
            metavar="FRACTION",
        ),
    ] = None
    max_delta: Annotated[
        float | None,
        Option(
            SEARCH,
            "instead of --keep: the largest loss increase, nats per token, e.g. 0.01",
            parser=partial(decimal, "max-delta", example="a loss increase in nats per token, e.g. 0.01"),
            metavar="NATS",
        ),
    ] = None
    objective: Annotated[
        Literal["expected-loss", "loss", "key-loss", "mix"],
        Option(
            SEARCH,
            "what chooses; expected-loss: KL(all full || pattern) of next tokens; loss: LM loss, as Algorithm 1; "
            "key-loss: LM loss on tokens that need the long context; mix: expected-loss and the answers of probes",
        ),
    ] = "expected-loss"
    max_probe_delta: Annotated[
        float | None,
        Option(
            SEARCH,
            "exit with 1 where the plan's loss increase on probes may be larger, nats per answer token",
            parser=partial(
                decimal, "max-probe-delta", example="a loss increase in nats per answer token, e.g. 0.1"
            ),
            metavar="NATS",
        ),
    ] = None
    strategy: Annotated[
        Literal["fast", "exact", "blocks", "dp", "distilled"],
        Option(
            SEARCH,
            "fast: lazy re-evaluation and racing; exact: Algorithm 1, every candidate on every window; "
            "blocks: the paper's pipeline variant; dp: dynamic programming over layer costs, in seconds; "
            "distilled: fast, each candidate measured with indexers distilled for it, for a plan to distill",
        ),
    ] = "fast"
    standard_errors: Annotated[
        Annotated[float, Gt(0), Le(1e9)],
        Option(SEARCH, "fast and refinement: how much worse a candidate must be to leave the race early"),
    ] = 2.0
    blocks: Annotated[Number, Option(SEARCH, "number of blocks, for the strategy of that name")] = 2
    refine_rounds: Annotated[
        Count, Option(SEARCH, "swaps of a full for a shared site after the removals, at most; 0 for none")
    ] = 0
    student_steps: Annotated[
        Number,
        Option(SEARCH, "steps that train each indexer of a search with --distilled; more find better patterns"),
    ] = 50
    surrogate: Annotated[
        Literal["fisher", "error", "none"],
        Option(
            SEARCH,
            "layer costs for dp, for fast's first order and as a baseline; fisher: weighted by a backward pass; "
            "error: of attention outputs, no gradient; none: not measured",
        ),
    ] = "error"
    confidence: Annotated[
        Annotated[float, Gt(0), Lt(1)],
        Option(SEARCH, "of intervals, and of steps that count as decided"),
    ] = 0.95
    gate: Annotated[
        Literal["interval", "estimate"],
        Option(SEARCH, "what limits on loss increases hold: the upper end of the interval, or the point estimate"),
    ] = "interval"
    baselines: Annotated[
        Literal["uniform", "curve", "overlap"],
        Option(
            SEARCH,
            "what the report compares with; uniform: at the budget asked for; curve: at all; overlap: also "
            "patterns by overlap alone, and the heatmap",
        ),
    ] = "uniform"
    init: Annotated[
        str | None, Option(SEARCH, "an older plan.json whose order gives the first priorities, for fast")
    ] = None
    pin: Annotated[
        list[Layer] | None,
        Option(
            CONSTRAINTS,
            "decoder layers that stay full whatever is measured, e.g. 0,12",
            parser=partial(numbers, "pin"),
            metavar="LAYERS",
        ),
    ] = None
    pp_size: Annotated[
        Number | None,
        Option(CONSTRAINTS, "pipeline stages, split as vLLM splits them; the first site of each stays full"),
    ] = None
    pp_layers: Annotated[
        list[Number] | None,
        Option(
            CONSTRAINTS,
            "instead of --pp-size: decoder layers of each stage, e.g. 20,20,21",
            parser=partial(numbers, "pp-layers"),
            metavar="LAYERS",
        ),
    ] = None
    indexer: Annotated[
        Literal["auto", "stock", "chunked"],
        Option(LONG, "stock: transformers' own; chunked: the same choice in bounded memory; auto picks"),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "stock", "sparse"],
        Option(LONG, "stock: transformers' own; sparse: over the selected tokens only; auto picks by length"),
    ] = "auto"
    beyond_positions: Annotated[
        bool, Option(LONG, "allow windows longer than the model's max_position_embeddings")
    ] = False
    max_rows: Annotated[
        Number | None,
        Option(LONG, "windows x patterns that go through the layers together", "by free memory"),
    ] = None


FIELDS = {field.name: field for field in fields(Recipe)}


@cache
def field_hints() -> dict[str, Any]:
    """The type of each field with its notes, evaluated once: that takes a while, and ``--help`` needs all."""
    return get_type_hints(Recipe, include_extras=True)


def option_of(field: str) -> Option:
    """How the field ``field`` is presented.

    Raises:
        KeyError: it is no option, as ``schema_version``.
    """
    hint = field_hints()[field]
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Option):
            return note
    raise KeyError(field)


def fields_in(name: str) -> frozenset[str]:
    """The fields that the recipe ``name`` itself sets; none where it cannot be read."""
    try:
        document = _document(_find(name))
    except (SettingError, FileNotFoundError):
        return frozenset()
    return frozenset(document) & FIELDS.keys() if isinstance(document, dict) else frozenset()


def read_recipe(name: str) -> Recipe:
    """The recipe in the file ``name``, or the package's own recipe of that name, e.g. ``"tiny"``.

    Raises:
        SettingError: no such recipe, not YAML, or a field that is unknown or has an impossible value.
    """
    path = _find(name)
    try:
        document = _document(path)
    except FileNotFoundError:
        raise _no_recipe(name) from None
    if not isinstance(document, dict):
        raise SettingError(f"recipe {str(path)!r} holds no settings", hint="give lines such as 'window: 8192'")
    return _validated(document, f"recipe {str(path)!r}")


def _document(path: Path) -> Any:
    # Only here: importing YAML takes a third of what --help takes, which reads no recipe.
    from ..system.plain_yaml import read_yaml

    return read_yaml(path, SettingError, _LARGEST_FILE)


def with_options(recipe: Recipe | None, options: dict[str, Any]) -> Recipe:
    """``recipe`` with the ``options`` of the command line laid over it, by the names of its fields.

    Raises:
        SettingError: names the option that has an impossible value.
    """
    base = {name: value for name, value in vars(recipe).items() if value is not None} if recipe else {}
    # Both say the stages: what an option says of them replaces whichever of the two the recipe has.
    if options.keys() & {"pp_size", "pp_layers"}:
        base = {name: value for name, value in base.items() if name not in ("pp_size", "pp_layers")}
    return _validated(base | options)


@cache
def _document_model() -> type[BaseModel]:
    """What validates a recipe's document: each field in its range, none unknown, no type converted."""
    from pydantic import ConfigDict, create_model

    hints = field_hints()
    members: dict[str, Any] = {name: (hints[name], field.default) for name, field in FIELDS.items()}
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("RecipeDocument", __config__=config, **members)


def _validated(document: dict[str, Any], recipe: str = "") -> Recipe:
    """``document`` as a recipe; ``recipe`` says which one it stands in, "" for options."""
    from pydantic import ValidationError

    for field in _COMMAND_LINE_ONLY:
        if field in document:
            raise SettingError(
                f"{recipe} sets {field}, which no recipe can",
                hint=f"give {option_name(field)} on the command line, each time",
            )
    for field, value in document.items():
        try:
            check_showable(value)
        except ValueError as error:
            raise SettingError(f"{_field_place(field, recipe)}: {error}") from None
    if isinstance(keep := document.get("keep"), str):  # YAML takes 25% and 1/4 for words
        try:
            document = {**document, "keep": fraction(keep)}
        except SettingError:
            what = f"{_field_place('keep', recipe)} is {keep!r}: it should be a fraction"
            raise SettingError(what, hint=option_of("keep").help) from None
    try:
        return Recipe(**dict(_document_model().model_validate(document)))
    except ValidationError as error:
        raise _field_error(error, recipe) from None


def _field_error(error: ValidationError, recipe: str) -> SettingError:
    field, fault = first_fault(error)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, FIELDS, n=1)
        return SettingError(
            f"{recipe} has an unknown field {field!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FIELDS)}",
        )
    return SettingError(
        f"{_field_place(field, recipe)} is {reprlib.repr(first['input'])}: "
        f"{fault.lower().replace('input should', 'it should')}",
        hint=None if first["type"] == "literal_error" else _example(field.partition(".")[0]),
    )


def _example(field: str) -> str | None:
    """What a field may be instead: its default where that is a number, else what it is for."""
    if field not in FIELDS or field == "schema_version":
        return None
    default = FIELDS[field].default
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    return f"e.g. {default:g}" if is_number else option_of(field).help


def _field_place(field: str, recipe: str) -> str:
    return f"{recipe}, {field}" if recipe else option_name(field.partition(".")[0])


def option_name(field: str) -> str:
    """The option that sets a field, e.g. ``--max-delta``."""
    return f"--{field.replace('_', '-')}"


def _find(name: str) -> Path:
    shipped = _FOLDER / Path(name).name
    for candidate in (home_expanded(name), shipped.with_name(f"{shipped.name}.yaml"), shipped):
        if candidate.suffix in (".yaml", ".yml") and is_there(candidate):
            return candidate
    raise _no_recipe(name)


def _no_recipe(name: str) -> SettingError:
    shipped = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
    return SettingError(f"recipe {name!r} does not exist", hint=f"give a YAML file or one of: {shipped}")
