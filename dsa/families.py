"""What differs between DSA model families: where their sites are and how many keys they select."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True)
class Family:
    """A model family of transformers whose decoder layers own a lightning indexer.

    Args:
        model_type: transformers' name for it.
        example: a public checkpoint family that uses it.
        site_layers: absolute ids of the layers that own an indexer, read off the config.
        shared_layers: layers that reuse an earlier selection in the checkpoint itself.
        selection_width: keys a query may see before its indexer has to choose among them.
        token_indices: whether indexers select single tokens, one set for all heads, on latent keys: what the
            backends for long windows are written for.
    """

    model_type: str
    example: str
    site_layers: Callable[[Any], tuple[int, ...]]
    shared_layers: Callable[[Any], tuple[int, ...]]
    selection_width: Callable[[Any], int]
    token_indices: bool = True


def _every_layer(config: Any) -> tuple[int, ...]:
    return tuple(range(config.num_hidden_layers))


def _layers_typed(role: str) -> Callable[[Any], tuple[int, ...]]:
    def layers(config: Any) -> tuple[int, ...]:
        types = config.indexer_types[: config.num_hidden_layers]
        if len(types) < config.num_hidden_layers or not set(types) <= {"full", "shared"}:
            raise ModelError(
                f"the config's indexer_types must say full or shared for each of {config.num_hidden_layers} layers"
            )
        return tuple(layer for layer, kind in enumerate(types) if (kind == "shared") == (role == "shared"))

    return layers


def _index_topk(config: Any) -> int:
    if not isinstance(config.index_topk, int) or config.index_topk < 1:
        raise ModelError(f"the config's index_topk is {config.index_topk!r}, not a positive number of keys")
    return config.index_topk


FAMILIES = {
    family.model_type: family
    for family in (
        Family("deepseek_v32", "DeepSeek-V3.2", _every_layer, lambda config: (), _index_topk),
        Family("glm_moe_dsa", "GLM-5", _layers_typed("full"), _layers_typed("shared"), _index_topk),
    )
}


def family_of(config: Any) -> Family:
    """The family that a transformers config belongs to.

    Raises:
        ModelError: the model has no indexer, or one of a family that is not supported.
    """
    model_type = getattr(config, "model_type", "unknown")
    if model_type not in FAMILIES:
        known = ", ".join(f"{family.model_type} ({family.example})" for family in FAMILIES.values())
        raise ModelError(
            f"the model is of type {model_type!r}, which has no lightning indexer that can be searched",
            hint=f"families with one: {known}",
        )
    return FAMILIES[model_type]
