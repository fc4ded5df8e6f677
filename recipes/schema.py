"""What a recipe may say, and how a recipe file is found, read and checked."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import SettingError

_FOLDER = Path(__file__).resolve().parent
_LARGEST_FILE = 1 << 20


class Recipe(BaseModel):
    """Settings of a search. Options on the command line and INDEXCACHE_* variables win over them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(1, description="version of this schema")
    model: str | None = Field(None, description="local folder or hub id of a DSA checkpoint")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    dataset: str | None = Field(None, description="local file or folder, or hub name, of calibration text")
    dataset_subset: str | None = Field(None, description="configuration of a hub dataset")
    dataset_split: str | None = Field(None, description="split of a hub dataset, train if not given")
    dataset_revision: str | None = Field(None, description="branch, tag or commit of a hub dataset")
    column: str | None = Field(None, description="column with text or chat messages; found by name if not given")
    window: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens per window; four times the selection width if not given"
    )
    windows: Annotated[int, Field(ge=1)] = Field(32, description="calibration windows")
    heldout: Annotated[int, Field(ge=0)] = Field(16, description="held-out windows, from other documents")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="order of documents and choice of windows")
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
    pin: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="decoder layers that stay full whatever is measured, e.g. [0, 12]"
    )
    pp_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="pipeline stages, split as vLLM splits them; the first site of each stays full"
    )
    pp_layers: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="instead of pp_size: decoder layers of each stage, e.g. [20, 20, 21]"
    )
    standard_errors: Annotated[float, Field(gt=0)] = Field(
        3.0, description="fast and refinement: how much worse a candidate must be to leave the race early"
    )
    blocks: Annotated[int, Field(ge=1)] = Field(2, description="number of blocks, for the strategy of that name")
    refine_rounds: Annotated[int, Field(ge=0)] = Field(
        0, description="swaps of a full for a shared site after the removals, at most; 0 for none"
    )
    baselines: Literal["uniform", "overlap"] = Field(
        "uniform", description="what the report compares with; overlap adds overlap patterns and the heatmap"
    )
    init: str | None = Field(
        None, description="an older plan.json whose order gives the first priorities, for fast"
    )
    max_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="windows x patterns that go through the layers together; by free memory if not given"
    )
    selfcheck: bool = Field(
        True,
        description="before measuring, check on one short window that sharing does in this model what it should",
    )
    keep: float | None = Field(None, description="fraction of sites that stay full: above 0, at most 1")
    max_delta: float | None = Field(None, description="instead of keep: largest loss increase, nats per token")


def read_recipe(name: str) -> Recipe:
    """The recipe in the file ``name``, or the package's own recipe of that name, e.g. ``"tiny"``.

    Raises:
        SettingError: no such recipe, not YAML, or a field that is unknown or has an impossible value.
    """
    path = _find(name)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SettingError(f"recipe {str(path)!r} is larger than any recipe ({_LARGEST_FILE >> 20} MiB)")
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise SettingError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingError(f"recipe {str(path)!r} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise SettingError(f"recipe {str(path)!r} holds no settings", hint="give lines such as 'window: 8192'")
    return checked(document, f"recipe {str(path)!r}")


def checked(document: dict[str, Any], where: str) -> Recipe:
    """``document`` as a recipe.

    Raises:
        SettingError: names ``where``, the field and, for an unknown one, the nearest known name.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, Recipe.model_fields, n=1)
            raise SettingError(
                f"{where} has an unknown field {field!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(Recipe.model_fields)}",
            ) from None
        raise SettingError(
            f"{where}, {field} is {first['input']!r}: {first['msg'].lower().replace('input should', 'it should')}",
            hint=Recipe.model_fields[field].description if field in Recipe.model_fields else None,
        ) from None


def _find(name: str) -> Path:
    own = _FOLDER / Path(name).name
    for candidate in (Path(name).expanduser(), own.with_name(f"{own.name}.yaml"), own):
        if candidate.is_file() and candidate.suffix in (".yaml", ".yml"):
            return candidate
    shipped = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
    raise SettingError(f"recipe {name!r} does not exist", hint=f"give a YAML file or one of: {shipped}")
