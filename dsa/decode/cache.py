"""A key-value cache as a long prompt leaves it: of values drawn at random, or of a prefill."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from ..long.capacity import free_memory

# Tokens of the forward that makes a cache's layers as the model has them; their values are drawn anew.
_SEED_TOKENS = 4
# Tokens that a prefill brings at a time, where one is needed: a stock indexer's scores grow with them.
_PREFILL_TOKENS = 256


class FilledCache:
    """A cache that holds ``context`` tokens, and goes back to them after each step.

    How long a step takes depends on how many keys there are and not on what they are, so that keys are drawn at
    random and no prompt has to be run. They lie in memory that has room for the step's own: transformers' dynamic
    cache copies all keys for each token instead, which no engine does. Cache layers of another kind than plain,
    indexed, sliding and linear ones are filled by a prefill of random tokens and copied for each step.

    Args:
        forward: runs the model on ``input_ids`` and a cache (None for a new one), and gives the cache.
        ids: ``[batch, context]``, on the model's device.
        latent: whether keys and values are one latent vector's parts, to be kept side by side in memory.
    """

    def __init__(self, forward: Callable[[torch.Tensor, Any], Any], ids: torch.Tensor, latent: bool) -> None:
        self.batch, self.context = ids.shape
        cache = forward(ids[:, : min(self.context, _SEED_TOKENS)], None)
        self._rewinds: list[Callable[[], None]] = []
        self.is_random = all(_is_known(layer) for layer in cache.layers)
        """Whether its values are drawn at random, and so in place: else ``rewind`` gives another cache."""
        if self.is_random:
            _check_fits(cache, self.context)
            for layer in cache.layers:
                self._rewinds.append(_KINDS[type(layer).__name__](layer, self.context, latent))
        else:
            for start in range(cache.get_seq_length(), self.context, _PREFILL_TOKENS):
                cache = forward(ids[:, start : start + _PREFILL_TOKENS], cache)
        self._filled = cache

    def rewind(self) -> Any:
        """The cache as it was filled; to be called before each step."""
        if not self.is_random:
            return copy.deepcopy(self._filled)
        for rewind in self._rewinds:
            rewind()
        return self._filled


def _check_fits(cache: Any, context: int) -> None:
    """Refuses a cache that memory has no room for: a CPU that runs out of it ends the process.

    Raises:
        MemoryError: it does not fit.
    """
    needed: Counter[torch.device] = Counter()
    for layer in cache.layers:
        for name in ("keys", "values", "indexer_keys"):
            keys = getattr(layer, name, None)
            if isinstance(keys, torch.Tensor) and keys.numel():
                needed[keys.device] += keys.nbytes // keys.shape[-2] * context
    for device, size in needed.items():
        if size > free_memory(device):
            raise MemoryError(f"a cache of {size:,} bytes does not fit on {device}")


def _is_known(layer: Any) -> bool:
    # Positions beside the index keys are no values that could be drawn.
    return type(layer).__name__ in _KINDS and getattr(layer, "indexer_position_ids", None) is None


class _Buffer:
    """Keys of one kind with room for a step behind them; what a cache layer's concatenation is replaced by.

    Args:
        memory: ``[..., context + 1, width]``.
        context: how many tokens it is filled with.
    """

    def __init__(self, memory: torch.Tensor, context: int) -> None:
        self._memory, self._context = memory, context

    @property
    def filled(self) -> Any:
        """Without the step's."""
        return self._memory[..., : self._context, :]

    def with_step(self, keys: torch.Tensor) -> torch.Tensor:
        """All keys, those of the step written behind the others."""
        self._memory[..., self._context :, :].copy_(keys)
        return self._memory


def _random(like: torch.Tensor, tokens: int, width: int | None = None) -> torch.Tensor:
    """As ``like`` but of so many tokens, its last dimension but one, and as wide."""
    shape = (*like.shape[:-2], tokens, width or like.shape[-1])
    drawn: torch.Tensor = torch.randn(shape, dtype=like.dtype, device=like.device)
    return drawn


def _fill_plain(layer: Any, context: int, latent: bool) -> Callable[[], None]:
    """Keys and values ``[batch, heads, tokens, width]``; of MLA, the latent key and its rotary part."""
    if layer.keys is None:  # a layer that reads another one's keys has none of its own
        return lambda: None
    width = layer.keys.shape[-1]
    if latent and layer.keys.shape[:-1] == layer.values.shape[:-1]:
        both = _random(layer.keys, context + 1, width + layer.values.shape[-1])
        keys, values = _Buffer(both[..., :width], context), _Buffer(both[..., width:], context)
    else:
        keys, values = (_Buffer(_random(part, context + 1), context) for part in (layer.keys, layer.values))

    def update(key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        layer.keys, layer.values = keys.with_step(key_states), values.with_step(value_states)
        return layer.keys, layer.values

    def rewind() -> None:
        layer.keys, layer.values = keys.filled, values.filled

    layer.update = update
    return rewind


def _fill_indexed(layer: Any, context: int, latent: bool) -> Callable[[], None]:
    """Index keys ``[batch, tokens, width]`` beside; none where the layer is shared, which writes none."""
    rewind_plain = _fill_plain(layer, context, latent)
    if layer.indexer_keys is None or not layer.indexer_keys.numel():
        return rewind_plain
    index_keys = _Buffer(_random(layer.indexer_keys, context + 1), context)

    def update_indexer(key_states: torch.Tensor) -> Any:
        layer.indexer_keys = index_keys.with_step(key_states)
        return layer.indexer_keys

    def rewind() -> None:
        rewind_plain()
        layer.indexer_keys = index_keys.filled

    layer.update_indexer = update_indexer
    return rewind


def _fill_sliding(layer: Any, context: int, latent: bool) -> Callable[[], None]:
    """The last keys of a window; a step makes new tensors, so that the old ones only have to be put back."""
    held = min(context, layer.sliding_window - 1)
    keys, values = _random(layer.keys, held), _random(layer.values, held)

    def rewind() -> None:
        layer.keys, layer.values, layer.cumulative_length = keys, values, context

    return rewind


def _leave(layer: Any, context: int, latent: bool) -> Callable[[], None]:
    """A state of one size, whatever the context; a step that goes on from the last one's takes as long."""
    return lambda: None


_KINDS: dict[str, Callable[[Any, int, bool], Callable[[], None]]] = {
    "DynamicLayer": _fill_plain,
    "DynamicIndexedLayer": _fill_indexed,
    "DynamicSlidingWindowLayer": _fill_sliding,
    "LinearAttentionLayer": _leave,
}
