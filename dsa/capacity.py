"""How much fits into the memory that is free: rows of a sweep, and states worth keeping."""

from __future__ import annotations

from typing import Any

import torch

from .families import text_config

# What a row needs at once, in copies of its hidden states: before and after a layer, and within it.
_COPIES = 6
_SHARE_FOR_ROWS = 0.5
_SHARE_FOR_PATHS = 0.25


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had where rows are held."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def row_bytes(config: Any, tokens: int, element_size: int, selection_width: int) -> int:
    """Memory of one window of ``tokens`` in one state, between and within layers."""
    text = text_config(config)
    # Hyper connections keep several streams of hidden states.
    streams = getattr(text, "hc_mult", None) or getattr(text, "hc_count", None) or 1
    hidden = streams * text.hidden_size * element_size
    return int(tokens * (_COPIES * hidden + 4 * selection_width))


def rows_that_fit(device: torch.device, bytes_per_row: int, processes: int = 1) -> int:
    """How many rows a sweep may carry, at least one; ``processes`` share this machine's memory."""
    return max(1, int(_SHARE_FOR_ROWS * _own_share(device, processes) // bytes_per_row))


def path_budget(device: torch.device, processes: int = 1) -> int:
    """Bytes for keeping states of the pattern in force."""
    return int(_SHARE_FOR_PATHS * _own_share(device, processes))


def _own_share(device: torch.device, processes: int) -> float:
    # Each process has a GPU of its own; CPU memory is everybody's.
    return free_memory(device) / (processes if device.type == "cpu" else 1)
