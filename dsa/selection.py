"""Whether a selection is known to name each key once, so that nobody has to look again."""

from __future__ import annotations

from typing import Any

import torch


def mark_distinct(selection: torch.Tensor) -> torch.Tensor:
    """Notes on ``selection`` that its rows repeat nothing, and that one which sees few keys begins with these.

    The note goes with the tensor through the switch and the model's own code; a copy lacks it.
    """
    noted: Any = selection
    noted.is_distinct = True
    return selection


def is_distinct(selection: torch.Tensor) -> bool:
    """Whether ``mark_distinct`` was called on this very tensor."""
    return getattr(selection, "is_distinct", False)


def without_repeats(selection: torch.Tensor) -> torch.Tensor:
    """``[rows, width]`` with each row ascending and -1 in place of a key named again."""
    ascending = selection.sort(dim=-1).values
    repeated = ascending[:, 1:] == ascending[:, :-1]
    ascending[:, 1:].masked_fill_(repeated, -1)
    return ascending
