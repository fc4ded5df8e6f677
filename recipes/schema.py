"""What a recipe may say, and how a recipe file is found, read and checked."""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import SettingError
from ..system.documents import check_showable, first_fault, read_yaml
from ..system.files import home_expanded, is_there
from .numbers import fraction

_FOLDER = Path(__file__).resolve().parent
_LARGEST_FILE = 64 << 10
# What runs or trusts a stranger's code is asked for each time, by whoever starts the program.
_COMMAND_LINE_ONLY = ("trust_remote_code", "allow_pickle")

Layer = Annotated[int, Field(ge=0, lt=1000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Number = Annotated[int, Field(ge=1, le=1_000_000)]


def _fraction(value: object) -> object:
    """What YAML takes for words is a fraction all the same."""
    if not isinstance(value, str):
        return value
    try:
        return fraction(value)
    except SettingError:
        raise ValueError("it should be a fraction") from None


class Recipe(BaseModel):
    """Settings of a search. Options on the command line and INDEXCACHE_* variables win over them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(1, description="version of this schema")
    model: str | None = Field(None, description="local folder or hub id of a DSA checkpoint")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    dataset: str | None = Field(None, description="local file or folder, or hub name, of calibration text")
    dataset_subset: str | None = Field(None, description="configuration of a dataset")
    dataset_split: str | None = Field(
        None, description="split of a dataset, train if not given, or all of a folder"
    )
    dataset_revision: str | None = Field(None, description="branch, tag or commit of a hub dataset")
    column: str | None = Field(None, description="column with text or chat messages; found by name if not given")
    window: Annotated[int, Field(ge=2, le=1 << 24)] | None = Field(
        None, description="tokens per window; four times the selection width if not given"
    )
    windows: Number = Field(32, description="calibration windows")
    heldout: Count = Field(16, description="held-out windows, from other documents")
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = Field(
        0, description="order of documents and choice of windows"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="compute type; auto is the checkpoint's: search in the type that is served"
    )
    indexer: Literal["auto", "stock", "chunked"] = Field(
        "auto", description="stock: transformers' own; chunked: the same choice in bounded memory; auto picks"
    )
    attention: Literal["auto", "stock", "sparse"] = Field(
        "auto", description="stock: transformers' own; sparse: over the selected tokens only; auto picks by length"
    )
    beyond_positions: bool = Field(
        False, description="allow windows longer than the model's max_position_embeddings"
    )
    device_map: str | None = Field(None, description="transformers' placement, e.g. auto, for large models")
    offload_folder: str | None = Field(
        None, description="where transformers puts weights that fit into no memory, with a device map"
    )
    strategy: Literal["exact", "fast", "blocks"] = Field(
        "fast",
        description="fast: lazy re-evaluation and racing; exact: Algorithm 1, every candidate on every window; "
        "blocks: the paper's pipeline variant",
    )
    pin: list[Layer] | None = Field(
        None, description="decoder layers that stay full whatever is measured, e.g. [0, 12]"
    )
    pp_size: Number | None = Field(
        None, description="pipeline stages, split as vLLM splits them; the first site of each stays full"
    )
    pp_layers: list[Number] | None = Field(
        None, description="instead of pp_size: decoder layers of each stage, e.g. [20, 20, 21]"
    )
    standard_errors: Annotated[float, Field(gt=0, le=1e9)] = Field(
        3.0, description="fast and refinement: how much worse a candidate must be to leave the race early"
    )
    blocks: Number = Field(2, description="number of blocks, for the strategy of that name")
    refine_rounds: Count = Field(
        0, description="swaps of a full for a shared site after the removals, at most; 0 for none"
    )
    baselines: Literal["uniform", "overlap"] = Field(
        "uniform", description="what the report compares with; overlap adds overlap patterns and the heatmap"
    )
    init: str | None = Field(
        None, description="an older plan.json whose order gives the first priorities, for fast"
    )
    max_rows: Number | None = Field(
        None, description="windows x patterns that go through the layers together; by free memory if not given"
    )
    weights_hash: Literal["auto", "sampled", "whole"] = Field(
        "auto",
        description="what the plan is tied to: whole tensors, or blocks of each; auto is whole up to 2 GiB",
    )
    selfcheck: bool = Field(
        True,
        description="before measuring, check on one short window that sharing does in this model what it should",
    )
    untrained: bool = Field(
        False,
        description="go on with a model whose loss on the first window is no better than word frequencies give",
    )
    keep: Annotated[float | None, BeforeValidator(_fraction)] = Field(
        None, description="fraction of sites that stay full: above 0 and at most 1, e.g. 0.25, 25% or 1/4"
    )
    max_delta: float | None = Field(None, description="instead of keep: largest loss increase, nats per token")


def read_recipe(name: str) -> Recipe:
    """The recipe in the file ``name``, or the package's own recipe of that name, e.g. ``"tiny"``.

    Raises:
        SettingError: no such recipe, not YAML, or a field that is unknown or has an impossible value.
    """
    path = _find(name)
    try:
        document = read_yaml(path, SettingError, _LARGEST_FILE)
    except FileNotFoundError:
        raise _no_recipe(name) from None
    if not isinstance(document, dict):
        raise SettingError(f"recipe {str(path)!r} holds no settings", hint="give lines such as 'window: 8192'")
    return _checked(document, f"recipe {str(path)!r}")


def with_options(recipe: Recipe | None, options: dict[str, Any]) -> Recipe:
    """``recipe`` with the ``options`` of the command line laid over it, by the names of its fields.

    Raises:
        SettingError: names the option that has an impossible value.
    """
    base = recipe.model_dump(exclude_none=True) if recipe else {}
    if options.keys() & {"pp_size", "pp_layers"}:
        base = {name: value for name, value in base.items() if name not in ("pp_size", "pp_layers")}
    return _checked(base | options)


def _checked(document: dict[str, Any], recipe: str = "") -> Recipe:
    """``document`` as a recipe; ``recipe`` says which one it stands in, "" for options."""
    for field in _COMMAND_LINE_ONLY:
        if field in document:
            raise SettingError(
                f"{recipe} sets {field}, which no recipe can",
                hint=f"give {_option(field)} on the command line, each time",
            )
    for field, value in document.items():
        try:
            check_showable(value)
        except ValueError as error:
            raise SettingError(f"{_named(field, recipe)}: {error}") from None
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise _wrong(error, recipe) from None


def _wrong(error: ValidationError, recipe: str) -> SettingError:
    field, fault = first_fault(error)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, Recipe.model_fields, n=1)
        return SettingError(
            f"{recipe} has an unknown field {field!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(Recipe.model_fields)}",
        )
    known = Recipe.model_fields.get(field.partition(".")[0])
    return SettingError(
        f"{_named(field, recipe)} is {reprlib.repr(first['input'])}: "
        f"{fault.lower().replace('input should', 'it should')}",
        hint=known and known.description,
    )


def _named(field: str, recipe: str) -> str:
    return f"{recipe}, {field}" if recipe else _option(field.partition(".")[0])


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _find(name: str) -> Path:
    own = _FOLDER / Path(name).name
    for candidate in (home_expanded(name), own.with_name(f"{own.name}.yaml"), own):
        if candidate.suffix in (".yaml", ".yml") and is_there(candidate):
            return candidate
    raise _no_recipe(name)


def _no_recipe(name: str) -> SettingError:
    shipped = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
    return SettingError(f"recipe {name!r} does not exist", hint=f"give a YAML file or one of: {shipped}")
