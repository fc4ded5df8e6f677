"""How much two sites select alike: the measure that the overlap baseline and its heatmap show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...errors import ModelError
from ...system import processes
from .losses import PatternLosses, Window

# Rows are compared in pieces whose masks take about this many bytes in fp32.
_MASK_BYTES = 128 << 20


def selection_overlap(
    losses: PatternLosses, windows: Sequence[Sequence[int]], selection_width: int
) -> list[list[float]]:
    """The share of what one site selects that another selects too, ``[sites][sites]``, all sites full.

    Counted in what the family's indexers choose: tokens, blocks, or compressed entries; what they have
    to take anyway (the tail behind the last whole pool, the block of the query) counts too. Averaged
    over the informative rows of all windows, those whose query sees more keys than are selected; the
    diagonal is 1. Every process measures its share of the windows.

    Args:
        losses: the model to measure.
        windows: token ids.
        selection_width: the most tokens that a query may see before its indexer has to choose.

    Raises:
        ModelError: the indexers return nothing that says what they select.
    """
    totals: dict[int, torch.Tensor] = {}
    for number, ids in enumerate(windows):
        if number % processes.process_count() != processes.process_index():
            continue
        chosen = [_rows_of(each) for each in losses.selections(Window(("overlap", number), ids))]
        totals[number] = _common(torch.stack(chosen)[:, :, selection_width:])
    together = processes.merge({number: total.tolist() for number, total in totals.items()})
    total = torch.tensor([together[number] for number in sorted(together)], dtype=torch.float64).sum(0)
    found: list[list[float]] = (total / total.diagonal()[:, None]).tolist()
    return found


def _rows_of(selection: Any) -> torch.Tensor:
    """One site's choices for one window, ``[groups, queries, width]``: indices with -1 for none, or a mask."""
    known = isinstance(selection, torch.Tensor) and not selection.is_floating_point()
    if not known or selection.dim() not in (3, 4) or len(selection) != 1:
        raise ModelError(
            "the indexers of this model return no indices, so that the overlap of selections cannot be counted",
            hint="leave --baselines overlap out",
        )
    rows: torch.Tensor = selection[0].cpu()
    return rows if rows.dim() == 3 else rows[None]


def _common(chosen: torch.Tensor) -> torch.Tensor:
    """What two sites both chose, summed over rows: ``[sites, sites]`` from ``[sites, groups, rows, width]``."""
    sites, groups, rows, width = chosen.shape
    slots = width if chosen.dtype == torch.bool else int(chosen.max()) + 1
    total = torch.zeros(sites, sites, dtype=torch.float64)
    step = max(1, _MASK_BYTES // (4 * sites * groups * (slots + 1)))
    for first in range(0, rows, step):
        part = chosen[:, :, first : first + step]
        if chosen.dtype == torch.bool:
            mask = part.float().flatten(1)
        else:
            # Empty places, -1, fall into a column that is dropped.
            mask = torch.zeros(*part.shape[:-1], slots + 1)
            mask.scatter_(-1, torch.where(part < 0, slots, part).long(), 1.0)
            mask = mask[..., :slots].flatten(1)
        total += (mask @ mask.T).double()
    return total
