"""Where a model's indexers are: in its config, in a model without weights, and in a loaded one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ...pattern import layer_ranges
from .architectures import model_class, skeleton
from .families import Family, no_indexer, text_config

if TYPE_CHECKING:
    from torch import nn

_INDEXER = re.compile(r"(?P<stack>.*\blayers)\.(?P<layer>\d+)\.(?:.*\.)?indexer$")
# Layers that predict further tokens stand beside the decoder's, or behind them in the same list.
_PREDICTORS = re.compile(r"\b(?:mtp|nextn)", re.IGNORECASE)


@dataclass(frozen=True)
class Sites:
    """Layers with an indexer, layers that share, the selection width, and what of it is assumed."""

    full: tuple[int, ...]
    shared: tuple[int, ...]
    width: int
    assumed: tuple[str, ...] = ()


def sites_of_family(text: Any, family: Family) -> Sites:
    """Sites of a model of a known family, from the config of its language model."""
    full = family.site_layers(text)
    # Before its width: a config without sites has no use for one, and often no value.
    return Sites(full, family.shared_layers(text), family.selection_width(text) if full else 0)


def sites_of_modules(config: Any, trust_remote_code: bool) -> Sites:
    """Sites of a model of no known family, from its modules on the meta device.

    Raises:
        ModelError: it cannot be built, or has no indexers.
    """
    text = text_config(config)
    layers, topk = getattr(text, "num_hidden_layers", None), getattr(text, "index_topk", None)
    try:
        model_class(config, trust_remote_code)
    except ModelError as error:
        raise no_indexer(config) from error
    _, indexers = find_indexers(skeleton(config, trust_remote_code), layers)
    if not indexers:
        raise no_indexer(config)
    full = tuple(indexers)
    types = list(getattr(text, "indexer_types", None) or ())[:layers]
    shared = tuple(layer for layer, kind in enumerate(types) if kind == "shared" and layer not in indexers)
    width = topk if isinstance(topk, int) and topk > 0 else 0
    assumed = (
        f"every layer that owns an indexer is a site: {layer_ranges(full)}",
        f"layers {layer_ranges(shared)} share already, as indexer_types say" if shared else "no layer shares yet",
        f"an indexer chooses once a query sees more than {width} keys, its index_topk"
        if width
        else "how many keys an indexer selects is not known, as the config has no index_topk",
    )
    return Sites(full, shared, width, assumed)


def decoder_layers(model: Any) -> int | None:
    """How many decoder layers the model's config counts, multi-token prediction left out; None if it does not."""
    config = getattr(model, "config", None)
    return None if config is None else getattr(text_config(config), "num_hidden_layers", None)


def expected_indexers(model: nn.Module, site_layers: Sequence[int]) -> tuple[str, dict[int, nn.Module]]:
    """``find_indexers``, where they are those of ``site_layers``.

    Raises:
        ModelError: they are not.
    """
    stack_name, indexers = find_indexers(model, decoder_layers(model))
    if tuple(indexers) != tuple(site_layers):
        raise ModelError(
            f"indexers are expected in layers {layer_ranges(site_layers)}, "
            f"but the loaded model has them in {layer_ranges(tuple(indexers)) or 'none'}",
            hint="the config or the plan is another model's",
        )
    return stack_name, indexers


def find_indexers(model: nn.Module, layers: int | None = None) -> tuple[str, dict[int, nn.Module]]:
    """The decoder stack's name and its indexers by absolute layer id, ascending.

    Args:
        model: any model.
        layers: decoder layers; indexers behind them belong to multi-token prediction and are left out.

    Raises:
        ModelError: several stacks of layers have indexers.
    """
    indexers: dict[int, nn.Module] = {}
    stacks: set[str] = set()
    for name, module in model.named_modules():
        match = _INDEXER.match(name)
        if match and not _PREDICTORS.search(name) and (layers is None or int(match["layer"]) < layers):
            stacks.add(match["stack"])
            indexers[int(match["layer"])] = module
    if len(stacks) > 1:
        raise ModelError(f"indexers stand in several stacks of layers: {', '.join(sorted(stacks))}")
    return (stacks.pop() if stacks else ""), dict(sorted(indexers.items()))
