"""Memory that shared layers spare: index keys, which none of them writes, and the weights of their indexers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...pattern import SHARED
from ...system.console import byte_count
from ..plan.beside import Record, read_record
from ..plan.schema import Plan, Sha256

SIZES_FILE = "sizes.json"

# Values that share a scale, an fp32 number, where keys are kept in FP8: engines take 132 bytes for 128 values.
_BLOCK, _SCALE_BYTES = 128, 4
FORMS: dict[str, Callable[[float], float]] = {
    "fp8": lambda values: values + _SCALE_BYTES * math.ceil(values / _BLOCK),
    "bf16": lambda values: 2 * values,
}
"""Bytes of a token's index keys at one site, by how they are kept: engines do in FP8, transformers in bf16."""
_WEIGHT_BYTES = 2  # in bf16
# Tokens to speak of where a model does not say how many it takes.
_EXAMPLE = 131072


class IndexerSizes(Record):
    """What each indexer of a checkpoint takes, by its config; written beside a plan, in ``sizes.json``.

    ``key_values`` are the numbers that a token adds to the index keys of each site, ``parameters`` those of each
    site's indexer.
    """

    config_sha256: Sha256
    key_values: list[Annotated[float, Field(gt=0, allow_inf_nan=False, le=1e6)]]
    parameters: list[Annotated[int, Field(ge=0)]]


@dataclass(frozen=True)
class Memory:
    """What indexers of some sites take.

    Args:
        token_bytes: of index keys, for each token in the cache, by form.
        weight_bytes: of the indexers, in bf16.
    """

    token_bytes: dict[str, float]
    weight_bytes: int

    def cache_bytes(self, form: str, tokens: int) -> float:
        """Of the index keys of ``tokens`` in the cache."""
        return self.token_bytes[form] * tokens


def index_cache_bytes_per_token(key_values: Sequence[float], form: str) -> float:
    """Bytes that a token adds to the index keys of sites that take ``key_values`` numbers each; see ``FORMS``."""
    return sum(FORMS[form](values) for values in key_values)


def memory_of(sizes: IndexerSizes, pattern: str | None = None) -> Memory:
    """What all sites' indexers take, or what the shared ones of ``pattern`` spare.

    Args:
        sizes: of the checkpoint's indexers.
        pattern: over the sites; None for all of them.
    """
    sites = [site for site in range(len(sizes.key_values)) if pattern is None or pattern[site] == SHARED]
    values = [sizes.key_values[site] for site in sites]
    return Memory(
        {form: index_cache_bytes_per_token(values, form) for form in FORMS},
        _WEIGHT_BYTES * sum(sizes.parameters[site] for site in sites),
    )


def spared_line(sizes: IndexerSizes, plan: Plan) -> str:
    """What a plan's shared layers spare, in one sentence."""
    every, spared = memory_of(sizes), memory_of(sizes, plan.result.pattern)
    tokens = plan.model.positions or _EXAMPLE
    fp8, bf16 = spared.token_bytes["fp8"], spared.token_bytes["bf16"]
    cache = byte_count(round(spared.cache_bytes("fp8", tokens)))
    return (
        f"shared layers spare {fp8:,.0f} of {every.token_bytes['fp8']:,.0f} bytes of index keys a token in FP8 "
        f"with scales ({bf16:,.0f} in bf16), which is {cache} at {tokens:,} tokens; and "
        f"{byte_count(spared.weight_bytes)} of indexer weights in bf16"
    )


def sizes_file(plan: Path) -> Path:
    """Where the sizes are of the model that the plan in the file ``plan`` is of."""
    return plan.with_name(SIZES_FILE)


def read_sizes(path: Path, plan: Plan) -> IndexerSizes | None:
    """The sizes in ``path``; None if there are none, or they are of another model.

    Raises:
        PlanError: it cannot be read, or is not what search writes.
    """
    sizes = read_record(path, IndexerSizes, "search", "remove it")
    if sizes is None or sizes.config_sha256 != plan.model.config_sha256:
        return None
    sites = len(plan.model.site_layers)
    return sizes if len(sizes.key_values) == len(sizes.parameters) == sites else None
