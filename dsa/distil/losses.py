"""Losses of patterns in which some full sites run distilled indexers, beside the model as it is, in one sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...pattern import DISTILLED, FULL
from ..checkpoint.sites import expected_indexers
from ..model.losses import PatternLosses
from ..model.stack import LayerCalls, State
from .segments import Segment
from .swap import swapped


class DistilledLosses(PatternLosses):
    """Measures patterns as ``PatternLosses`` does, and ``DistilledPattern``s too.

    A distilled indexer stands in the place of the model's while a branch goes through its layer. So all full,
    which everything is compared with, is the model as it was loaded, and layers that stream can be measured too.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
        parameters: of the distilled indexers, by segment and then by name in the indexer, in any type; read as
            they are needed, so that more may come.
        settings: of ``PatternLosses``.
    """

    def __init__(
        self,
        model: Any,
        site_layers: tuple[int, ...],
        parameters: Mapping[Segment, Mapping[str, torch.Tensor]],
        **settings: Any,
    ) -> None:
        super().__init__(model, site_layers, **settings)
        _, self._indexers = expected_indexers(model, site_layers)
        self._distilled = parameters

    def _through(self, layer: int, state: State, role: str, calls: LayerCalls) -> State:
        if not role.startswith(DISTILLED):
            return super()._through(layer, state, role, calls)
        segment = Segment(self._site_of[layer], int(role.removeprefix(DISTILLED)))
        with swapped(self._indexers[layer], self._distilled[segment]):
            return super()._through(layer, state, FULL, calls)
