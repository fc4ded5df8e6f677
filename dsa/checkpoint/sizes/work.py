"""How long a decoder layer takes for one window: floating-point operations by the config, at rates of an H100.

The rates and the layers that were timed are of one NVIDIA H100 (80 GB), bf16, random weights, chunked indexers and
sparse attention. ``docs/scale.md`` has the formula, and how far it is from what was timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..config import Checkpoint
from .count import LayerSizes, layer_sizes

Origin: TypeAlias = Literal["measured", "scaled", "computed", "given"]
"""Where a layer's time is from: timed at this length, at another one, never, or told by the user."""

# Floating-point operations a second.
_EXPERTS, _PRODUCTS, _INDEXING = 347e12, 437e12, 300e12
# Of sparse attention, by its heads: the kernel fills its tiles with many only.
_ATTENTION = {20: 124e12, 64: 222e12, 128: 228e12}


@dataclass(frozen=True)
class TimedLayer:
    """A layer with experts as it was timed.

    Args:
        model: whose layer it is.
        shape: hidden size, attention heads, routed experts, their width.
        seconds: full and shared, by tokens of the window.
    """

    model: str
    shape: tuple[int, int, int, int]
    seconds: Mapping[int, tuple[float, float]]


TIMED = (
    TimedLayer("DeepSeek-V3.2", (7168, 128, 256, 2048), {16_384: (0.097, 0.090), 32_768: (0.211, 0.184)}),
    TimedLayer("GLM-5", (6144, 64, 256, 2048), {16_384: (0.069, 0.064), 32_768: (0.148, 0.132)}),
    # From prefills through its 47 layers, with 47 and with 12 of them full: 2.59 and 1.99 s.
    TimedLayer("a 30B of 47 layers", (2048, 20, 64, 1536), {32_768: (0.0551, 0.0380)}),
)


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of every layer for one window, full and shared, and where they are from."""

    seconds: tuple[tuple[float, float], ...]
    origin: Origin


def layer_times(checkpoint: Checkpoint, tokens: int) -> LayerTimes | None:
    """Seconds of every decoder layer for a window of ``tokens``; None where its config does not tell its sizes.

    A layer that was timed at another length is computed, and corrected as the nearest length needs it.
    """
    sizes = layer_sizes(checkpoint)
    if sizes is None:
        return None
    computed = [computed_seconds(checkpoint, layer, size, tokens) for layer, size in enumerate(sizes)]
    # The layers that are alike, and may have been timed.
    experts = next((layer for layer, size in enumerate(sizes) if size.idle and size.indexer), None)
    timed = None if experts is None else _timed(_layer_config(checkpoint, experts))
    if timed is None or experts is None:
        return LayerTimes(tuple(computed), "computed")
    length = min(timed.seconds, key=lambda length: abs(math.log(length / tokens)))
    told = computed_seconds(checkpoint, experts, sizes[experts], length)
    full, shared = (measured / guess for measured, guess in zip(timed.seconds[length], told, strict=True))
    return LayerTimes(
        tuple((seconds[0] * full, seconds[1] * shared) for seconds in computed),
        "measured" if length == tokens else "scaled",
    )


def computed_seconds(checkpoint: Checkpoint, layer: int, size: LayerSizes, tokens: int) -> tuple[float, float]:
    """Seconds of a layer for a window of ``tokens``, with its indexer and without.

    Args:
        checkpoint: whose layer it is.
        layer: its id.
        size: its parameters.
        tokens: of the window.
    """
    text, family, width = _layer_config(checkpoint, layer), checkpoint.family, checkpoint.selection_width
    used = size.feed_forward - size.idle
    experts, dense = (used, 0) if size.idle else (0, used)
    # A query sees the keys up to its own position, and at most as many as are selected.
    short = min(width, tokens)
    keys = short * (short + 1) // 2 + (tokens - short) * width
    heads = _number(text, "num_attention_heads")
    shared = (
        2 * tokens * experts / _EXPERTS
        + 2 * tokens * (size.attention + dense) / _PRODUCTS
        + 2 * keys * heads * _widths(text) / _attention_rate(heads)
    )
    index_width = _number(text, family.index_heads) * _number(text, family.index_head_dim) if family else 0
    indexing = 2 * tokens * size.indexer + tokens * (tokens + 1) * index_width
    return shared + (indexing / _INDEXING if size.indexer else 0), shared


def _widths(text: Any) -> int:
    """Numbers of a key and a value of one head, latent ones where the model has them."""
    if latent := _number(text, "kv_lora_rank"):
        return 2 * latent + _number(text, "qk_rope_head_dim")
    return 2 * _number(text, "head_dim")


def _attention_rate(heads: int) -> float:
    """That of the most heads that were timed and are no more than ``heads``."""
    return _ATTENTION[max((timed for timed in _ATTENTION if timed <= heads), default=min(_ATTENTION))]


def _layer_config(checkpoint: Checkpoint, layer: int) -> Any:
    """The config of one layer: where layers differ, transformers tells no common numbers."""
    configs = getattr(checkpoint.text, "per_layer_config", None)
    return configs[layer] if configs else checkpoint.text


def _timed(text: Any) -> TimedLayer | None:
    names = ("hidden_size", "num_attention_heads", "n_routed_experts", "moe_intermediate_size")
    shape = tuple(_number(text, name) for name in names)
    return next((timed for timed in TIMED if timed.shape == shape), None)


def _number(text: Any, name: str) -> int:
    """An entry of the config; 0 where it has none, or is no number."""
    entry = getattr(text, name, 0)
    return entry if type(entry) is int else 0
