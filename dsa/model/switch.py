"""Turns indexers on a loaded model off and on: a shared site returns what the full one before it chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ...pattern import Pattern
from ..checkpoint.sites import expected_indexers
from ..overrides import Overrides


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
        self._overrides = Overrides()
        for layer, module in indexers.items():
            self._overrides.replace(module, "forward", partial(_SwitchedForward, self, layer))

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
        if not self._overrides.on_top:
            raise ModelError("the model's indexers were overridden again since: remove that first")
        self.forget()
        self._overrides.undo()

    def selected(self, layer: int, stock_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``layer`` selects: by its own forward where it is full, else the last full site's choice."""
        if layer not in self._shared_layers:
            self.selection = stock_forward(*args, **kwargs)
        elif self.selection is None:
            raise RuntimeError(f"layer {layer} is shared, but no site before it has run")
        return self.selection


class _SwitchedForward:
    """An indexer's forward under a switch; an object, so that a copy of the model gets its copy."""

    def __init__(self, switch: Switch, layer: int, stock_forward: Callable[..., Any]) -> None:
        self._switch, self._layer, self._stock_forward = switch, layer, stock_forward

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        selection = self._switch.selected(self._layer, self._stock_forward, hidden_states, *args, **kwargs)
        return _moved(selection, hidden_states.device)


def _moved(selection: Any, device: torch.device) -> Any:
    # Under a device map a shared layer may be on another device than the site whose selection it reuses.
    return selection.to(device) if isinstance(selection, torch.Tensor) else selection
