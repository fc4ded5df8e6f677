"""Turns indexers on a loaded model off and on: a shared site returns what the full one before it chose."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..pattern import Pattern, layer_ranges
from .families import text_config

_INDEXER = re.compile(r"(?P<stack>.*\blayers)\.(?P<layer>\d+)\.(?:.*\.)?indexer$")
# Layers that predict further tokens stand beside the decoder's, or behind them in the same list.
_PREDICTORS = re.compile(r"\b(?:mtp|nextn)", re.IGNORECASE)


class Switch:
    """Overrides ``forward`` on each indexer instance of ``model``; the modules stay where they are.

    Full sites run their own forward and remember what it returned, whatever its form; shared sites
    return that. Under an all-full pattern the model computes exactly what it did before. The first site
    is always full, so each forward replaces what an earlier one left behind.

    Args:
        model: a transformers DSA model.
        site_layers: absolute ids of the layers whose indexers are switched, ascending.

    Raises:
        ModelError: the indexers found in the model are not those of ``site_layers``.
    """

    def __init__(self, model: nn.Module, site_layers: Sequence[int]) -> None:
        self.site_layers = tuple(site_layers)
        self.stack_name, indexers = expected_indexers(model, self.site_layers)
        self.selection: Any = None
        self._shared_layers: frozenset[int] = frozenset()
        self._indexers = indexers
        self._overridden = {layer: module.__dict__.get("forward") for layer, module in indexers.items()}
        self._switched = {layer: _Switched(self, layer, module.forward) for layer, module in indexers.items()}
        for layer, module in indexers.items():
            module.forward = self._switched[layer]

    def use(self, pattern: Pattern) -> None:
        """Runs the model under ``pattern`` from the next forward on; drop any live KV cache first."""
        if len(pattern) != len(self.site_layers):
            raise ModelError(f"the pattern has {len(pattern)} letters for {len(self.site_layers)} sites")
        self._shared_layers = frozenset(
            layer for site, layer in enumerate(self.site_layers) if not pattern.is_full(site)
        )

    def share_only(self, layer: int | None) -> None:
        """Makes ``layer`` shared and all others full; None makes all full. For running layers singly."""
        self._shared_layers = frozenset() if layer is None else frozenset({layer})

    def forget(self) -> None:
        """Drops the remembered selection."""
        self.selection = None

    def remove(self) -> None:
        """Gives the model its own forwards back; a second time does nothing.

        Raises:
            ModelError: something else overrides the forwards since, and has to be removed first.
        """
        if not self._switched:
            return
        if any(module.__dict__.get("forward") is not self._switched[n] for n, module in self._indexers.items()):
            raise ModelError("the model's indexers were overridden again since: remove that first")
        self.forget()
        for layer, module in self._indexers.items():
            restore(module, "forward", self._overridden[layer])
        self._switched = {}

    def selected(self, layer: int, own_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``layer`` selects: by its own forward where it is full, else the last full site's choice."""
        if layer not in self._shared_layers:
            self.selection = own_forward(*args, **kwargs)
        elif self.selection is None:
            raise RuntimeError(f"layer {layer} is shared, but no site before it has run")
        return self.selection


class _Switched:
    """An indexer's forward under a switch; an object, so that a copy of the model gets one of its own."""

    def __init__(self, switch: Switch, layer: int, own_forward: Callable[..., Any]) -> None:
        self._switch, self._layer, self._own_forward = switch, layer, own_forward

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        selection = self._switch.selected(self._layer, self._own_forward, hidden_states, *args, **kwargs)
        return _moved(selection, hidden_states.device)


def restore(module: nn.Module, name: str, overridden: Any) -> None:
    """Undoes an override of a method on the instance: back to ``overridden``, or to the class's own if None."""
    if overridden is None:
        module.__dict__.pop(name, None)
    else:
        setattr(module, name, overridden)


def _moved(selection: Any, device: torch.device) -> Any:
    return selection.to(device) if isinstance(selection, torch.Tensor) else selection


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
    found: dict[int, nn.Module] = {}
    stacks: set[str] = set()
    for name, module in model.named_modules():
        match = _INDEXER.match(name)
        if match and not _PREDICTORS.search(name) and (layers is None or int(match["layer"]) < layers):
            stacks.add(match["stack"])
            found[int(match["layer"])] = module
    if len(stacks) > 1:
        raise ModelError(f"indexers stand in several stacks of layers: {', '.join(sorted(stacks))}")
    return (stacks.pop() if stacks else ""), dict(sorted(found.items()))
