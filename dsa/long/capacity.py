"""How much fits into the memory that is free: a window's length, rows of a sweep, states worth keeping."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import WindowError
from ..checkpoint.families import family_of, text_config
from .backends import CHUNK_ON_CPU, CHUNK_ON_GPU, Backends
from .containers import allowance
from .feedforward import FEED_FORWARD_ROWS

# What a row needs at once, in copies of its hidden states: before and after a layer, and within it.
_COPIES = 6
_SHARE_FOR_ROWS = 0.5
_SHARE_FOR_PATHS = 0.25


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had where rows are held; on a CPU, within what its container is allowed."""
    if device.type == "cuda":
        # What torch has reserved and not handed out counts as free: it will hand that out first.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil

    limited = allowance()
    available = int(psutil.virtual_memory().available)
    return available if limited is None else min(available, limited.free)


def whole_memory(device: torch.device) -> int:
    """Bytes of memory where rows are held, whoever has them now: the same each time."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    limited = allowance()
    total = int(psutil.virtual_memory().total)
    return total if limited is None else min(total, limited.whole)


def process_memory(device: torch.device, processes: int) -> int:
    """Bytes that one of ``processes`` can have: each has a GPU to itself, and all share the CPU's memory."""
    return free_memory(device) // (1 if device.type == "cuda" else processes)


def row_bytes(config: Any, tokens: int, element_size: int, selection_width: int) -> int:
    """Memory of one window of ``tokens`` in one state, between and within layers."""
    text = text_config(config)
    hidden = _streams(text) * text.hidden_size * element_size
    return int(tokens * (_COPIES * hidden + 4 * selection_width))


def parked_bytes(config: Any, tokens: int, element_size: int, selection_width: int) -> int:
    """Memory of one window of ``tokens`` while it waits between layers: its state and its selection."""
    text = text_config(config)
    return int(tokens * (_streams(text) * text.hidden_size * element_size + 4 * selection_width))


def _streams(text: Any) -> int:
    """How many hidden states a token has: hyper connections keep several."""
    return int(getattr(text, "hc_mult", None) or getattr(text, "hc_count", None) or 1)


def rows_that_fit(free: int, bytes_per_row: int) -> int:
    """How many rows a sweep may carry in ``free`` bytes of a process, at least one."""
    return max(1, int(_SHARE_FOR_ROWS * free // bytes_per_row))


def path_budget(free: int) -> int:
    """Bytes for keeping states of the pattern in force, of ``free`` bytes of a process."""
    return int(_SHARE_FOR_PATHS * free)


def reference_budget(processes: int = 1) -> int:
    """Bytes of host memory for the last states of all full."""
    return int(_SHARE_FOR_PATHS * process_memory(torch.device("cpu"), processes))


def layer_bytes(config: Any, tokens: int, element_size: int, backends: Backends, on_gpu: bool) -> int:
    """What the largest layer takes for one window, beside its weights: an estimate from the config's sizes.

    Args:
        config: a transformers config; sizes that it lacks count as nothing.
        tokens: of the window.
        element_size: bytes of a value of the compute type.
        backends: what runs.
        on_gpu: whether chunks are those of a GPU.
    """
    text = text_config(config)

    def size(name: str, otherwise: int = 0) -> int:
        return int(getattr(text, name, None) or otherwise)

    # A chunk of scores or of gathered keys, with what is made of it.
    heads, chunk = size("num_attention_heads"), CHUNK_ON_GPU if on_gpu else 2 * CHUNK_ON_CPU
    keys = size("qk_nope_head_dim") + size("qk_rope_head_dim") or size("head_dim")
    values = size("v_head_dim", keys)
    hidden = _streams(text) * size("hidden_size") * element_size
    family = family_of(config)
    wide = max(size("intermediate_size"), size("num_experts_per_tok") * 2 * size("moe_intermediate_size"))
    total = tokens * (8 * hidden + 2 * heads * (keys + values) * element_size + 4 * size("index_topk"))
    if backends.indexer == "stock":
        # [tokens, heads, tokens] in fp32: products, and what the ReLU makes of them.
        total += 2 * 4 * tokens * tokens * size(family.index_heads if family else "index_n_heads")
    else:
        total += chunk
    if backends.attention == "stock":
        eager = text._attn_implementation == "eager" or (family is not None and family.attention == ("eager",))
        total += tokens * tokens * (5 + (heads * (4 + 2 * element_size) if eager else 0))
        total += tokens * heads * (keys + values) * element_size
    else:
        total += chunk
        tokens = min(tokens, FEED_FORWARD_ROWS)
    return total + tokens * 2 * wide * element_size


def longest_window(config: Any, below: int, element_size: int, backends: Backends, free: int, on_gpu: bool) -> int:
    """About the most tokens, fewer than ``below``, of which a window fits; the rest as for ``check_fits``."""
    # Bisection, to within 1.6 %: memory grows with the tokens.
    fits, too_long = 0, below
    while too_long - fits > max(1, fits // 64):
        middle = (fits + too_long) // 2
        if layer_bytes(config, middle, element_size, backends, on_gpu) <= free:
            fits = middle
        else:
            too_long = middle
    return fits


def check_fits(config: Any, tokens: int, element_size: int, backends: Backends, free: int, on_gpu: bool) -> None:
    """Refuses windows of which not even one goes through a layer.

    Args:
        config: see ``layer_bytes``, as for the others.
        tokens: of a window.
        element_size: bytes of a value of the compute type.
        backends: what runs.
        free: bytes that can be had, the weights already taken off.
        on_gpu: whether they are a GPU's.

    Raises:
        WindowError: says how much is needed, how much there is, and the length that would fit.
    """
    needed = layer_bytes(config, tokens, element_size, backends, on_gpu)
    if needed <= free:
        return
    fits = longest_window(config, tokens, element_size, backends, free, on_gpu)
    family = family_of(config)
    runs_by_option = {"--indexer chunked": backends.indexer, "--attention sparse": backends.attention}
    selects_tokens = family is not None and family.selects_tokens
    leaner = [option for option, runs in runs_by_option.items() if runs == "stock" and selects_tokens]
    raise WindowError(
        f"windows of {tokens} tokens do not fit: with {backends.indexer} indexers and {backends.attention} "
        f"attention a layer takes about {needed / 1e9:.1f} GB, and beside the weights "
        f"{max(0, free) / 1e9:.1f} GB are free",
        hint=(f"--window {fits} would fit" if fits > 1 else "use a larger device")
        + (f"; with {' '.join(leaner)} it takes less" if leaner else ""),
    )
