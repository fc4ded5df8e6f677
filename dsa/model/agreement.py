"""How much two sites select alike: the measure that the overlap baseline and its heatmap show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...errors import ModelError
from ...system import processes
from .losses import PatternLosses
from .tail import Window

# Rows are compared in pieces whose masks take about this many bytes in fp32.
_MASK_BYTES = 128 << 20
# Windows that a process sends through layers that stream together, while all their selections are in host memory.
_WINDOWS_A_SWEEP = 4


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
    rank, together = processes.process_index(), processes.process_count()
    portion = together * (_WINDOWS_A_SWEEP if losses.streams else 1)
    totals: dict[int, torch.Tensor] = {}
    # Alike on all processes, which bring weights together: also on those that have no window in the last portion.
    for first in range(0, len(windows), portion):
        numbers = [number for number in range(first, len(windows))[:portion] if number % together == rank]
        asked = [Window(("overlap", number), windows[number]) for number in numbers]
        for number, sites in zip(numbers, losses.selections(asked, _choices), strict=True):
            # [sites, groups, queries, width], then without the queries that see no more keys than they select.
            totals[number] = _common(torch.stack(sites)[:, :, selection_width:])
    merged = processes.merge({number: total.tolist() for number, total in totals.items()})
    # In the order of the windows, so that any number of processes gives the same sums.
    total = torch.tensor([merged[number] for number in sorted(merged)], dtype=torch.float64).sum(0)
    # On the diagonal stands how much a site selects itself.
    shares: list[list[float]] = (total / total.diagonal()[:, None]).tolist()
    return shares


def _choices(selection: Any) -> torch.Tensor:
    """One site's choices for one window, ``[groups, queries, width]``: indices with -1 for none, or a mask."""
    discrete = isinstance(selection, torch.Tensor) and not selection.is_floating_point()
    if not discrete or selection.dim() not in (3, 4) or len(selection) != 1:
        raise ModelError(
            "the indexers of this model return no indices, so that the overlap of selections cannot be counted",
            hint="leave --baselines overlap out",
        )
    rows: torch.Tensor = selection[0].cpu()
    rows = rows if rows.dtype == torch.bool else rows.int()  # of a long window, half the memory
    return rows if rows.dim() == 3 else rows[None]


def _common(choices: torch.Tensor) -> torch.Tensor:
    """What two sites both chose, summed over rows: ``[sites, sites]`` from ``[sites, groups, rows, width]``.

    With a row of zeros and ones for each site, ``M [sites, groups x rows x slots]``, this is ``M M^T``.
    """
    sites, groups, rows, width = choices.shape
    slots = width if choices.dtype == torch.bool else int(choices.max()) + 1
    total = torch.zeros(sites, sites, dtype=torch.float64)
    step = max(1, _MASK_BYTES // (4 * sites * groups * (slots + 1)))
    for first in range(0, rows, step):
        part = choices[:, :, first : first + step]
        if choices.dtype == torch.bool:
            mask = part.float().flatten(1)
        else:
            # Empty places, -1, fall into a column that is dropped.
            mask = torch.zeros(*part.shape[:-1], slots + 1)
            mask.scatter_(-1, torch.where(part < 0, slots, part).long(), 1.0)
            mask = mask[..., :slots].flatten(1)
        # Counts of one piece are whole numbers below 2^24, which fp32 holds exactly.
        total += (mask @ mask.T).double()
    return total
