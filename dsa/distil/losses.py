"""Losses of patterns in which some full sites run distilled indexers, beside the model as it is, in one sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...pattern import DISTILLED, FULL
from ..checkpoint.sites import expected_indexers
from ..model.losses import PatternLosses
from ..model.stack import LayerCalls, State
from .swap import swapped


class DistilledLosses(PatternLosses):
    """Measures patterns as ``PatternLosses`` does, and ``DistilledPattern``s too.

    A distilled indexer stands in the place of the model's while a branch goes through its layer. So all full,
    which everything is compared with, is the model as it was loaded, and layers that stream can be measured too.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
        parameters: of the distilled indexers, by site and then by name in the indexer, in any type.
        settings: of ``PatternLosses``. No memory: it takes patterns for the same whose letters are.
    """

    def __init__(
        self,
        model: Any,
        site_layers: tuple[int, ...],
        parameters: Mapping[int, Mapping[str, torch.Tensor]],
        **settings: Any,
    ) -> None:
        super().__init__(model, site_layers, **settings)
        _, indexers = expected_indexers(model, site_layers)
        self._distilled = {
            site_layers[site]: (indexers[site_layers[site]], values) for site, values in parameters.items()
        }

    def _through(self, layer: int, state: State, role: str, calls: LayerCalls) -> State:
        if role != DISTILLED:
            return super()._through(layer, state, role, calls)
        with swapped(*self._distilled[layer]):
            return super()._through(layer, state, FULL, calls)
