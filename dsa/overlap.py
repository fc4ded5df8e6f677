"""How much two sites select alike: the measure that the overlap baseline and its heatmap show."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import processes
from .losses import PatternLosses, Window

# Rows are compared in pieces whose masks take about this many bytes in fp32.
_MASK_BYTES = 128 << 20


def selection_overlap(
    losses: PatternLosses, windows: Sequence[Sequence[int]], selection_width: int
) -> list[list[float]]:
    """The share of keys that two sites select alike, ``[sites][sites]``, all sites full.

    Averaged over the informative rows of all windows, those whose query sees more keys than are
    selected; the diagonal is 1. Every process measures its share of the windows.

    Args:
        losses: the model to measure.
        windows: token ids.
        selection_width: keys that each row selects.
    """
    totals: dict[int, torch.Tensor] = {}
    for number, ids in enumerate(windows):
        if number % processes.process_count() != processes.process_index():
            continue
        chosen = torch.stack([each[0].cpu() for each in losses.selections(Window(("overlap", number), ids))])
        totals[number] = _common(chosen[:, selection_width:].long(), len(ids) - 1)
    together = processes.merge({number: total.tolist() for number, total in totals.items()})
    mean = torch.tensor([together[number] for number in sorted(together)], dtype=torch.float64).mean(0)
    rows = len(windows[0]) - 1 - selection_width
    found: list[list[float]] = (mean / (rows * selection_width)).tolist()
    return found


def _common(chosen: torch.Tensor, tokens: int) -> torch.Tensor:
    """Keys selected by both, summed over rows: ``[sites, sites]`` from indices ``[sites, rows, width]``."""
    sites, rows, _ = chosen.shape
    total = torch.zeros(sites, sites, dtype=torch.float64)
    step = max(1, _MASK_BYTES // (4 * sites * tokens))
    for first in range(0, rows, step):
        part = chosen[:, first : first + step]
        mask = torch.zeros(sites, part.shape[1], tokens).scatter_(-1, part, 1.0).flatten(1)
        total += (mask @ mask.T).double()
    return total
