"""What each query may see, said without a ``[tokens, tokens]`` tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compact_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor:
    """A mask function for transformers' ``AttentionMaskInterface`` that holds one value a key.

    Returns ``[batch, 1, 1, keys]``, 0 where a key is real and -inf where it is padding, or a single 0 if
    none is. That a query sees no later key, and within a sliding window none before it, is left to those
    who read the mask through ``Visibility``. What it says lies in its shape, which survives a move to
    another device. It is fp32, as adding to it or inverting it would fill memory with ``[queries, keys]``
    values. Where queries do not stand at the places of the keys (a live cache, packed sequences) the mask
    is transformers' own.
    """
    from transformers.masking_utils import causal_mask_function, eager_mask

    causal = mask_function is causal_mask_function or (local_size is not None and allow_is_causal_skip)
    if not causal or q_length != kv_length or q_offset or kv_offset:
        mask: torch.Tensor = eager_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function or causal_mask_function,
            attention_mask, dtype=torch.float32, device=device, local_size=local_size, **_without_dtype(kwargs),
        )  # fmt: skip
        return mask
    if attention_mask is None:
        return torch.zeros(1, 1, 1, 1, device=device)
    real = attention_mask[:, None, None, :kv_length].to(device=device, dtype=torch.bool)
    return torch.zeros(real.shape, device=device).masked_fill_(~real, -torch.inf)


def whole_mask(mask: torch.Tensor, queries: int) -> torch.Tensor:
    """``mask`` for code that reads causality off it: one of ``compact_mask`` gets a row for each query.

    Args:
        mask: ``[batch, queries or 1, keys or 1]``; with one row for several queries it is compact.
        queries: how many there are; with a compact mask they stand at the places of the keys.
    """
    if mask.shape[1] == queries:
        return mask
    hidden = torch.full((queries, queries), -torch.inf, device=mask.device).triu_(1)
    return mask + hidden


def _without_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "dtype"}


class Visibility:
    """Reads a mask piece by piece; rows are counted from its own first one.

    Args:
        mask: ``[batch, queries, keys]``; true or 0 where a key is visible, or one from ``compact_mask``.
        first: place in the sequence of the mask's first query; above 0 with a live cache.
    """

    def __init__(self, mask: torch.Tensor, first: int = 0) -> None:
        self._mask = mask
        self.first = first
        # A whole mask of one query, the last, has this shape too and reads the same. A mask of truth values would
        # not: there 0 hides a key.
        self._compact = mask.shape[1] == 1 and mask.dtype != torch.bool
        self._padded = self._compact and mask.shape[2] > 1

    @property
    def causal(self) -> bool:
        """Whether a query sees all keys up to its own place and nothing else restricts it."""
        return self._compact and not self._padded

    def block(
        self, batch: int, rows: tuple[int, int], keys: tuple[int, int], window: int | None = None
    ) -> torch.Tensor:
        """Whether queries ``rows[0]`` to ``rows[1] - 1`` see the keys of that range: ``[queries, keys]``.

        Args:
            batch: which sequence.
            rows: of the mask.
            keys: places in the sequence.
            window: of a compact mask, how many keys back a query sees, itself included; None for all.
        """
        if not self._compact:
            part = self._mask[batch, rows[0] : rows[1], keys[0] : keys[1]]
            return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
        place = self.first + torch.arange(*rows, device=self._mask.device)[:, None]
        key = torch.arange(*keys, device=self._mask.device)[None]
        visible = key <= place
        if window is not None:
            visible &= key > place - window
        return visible & (self._mask[batch, 0, keys[0] : keys[1]] == 0) if self._padded else visible

    def chosen(self, batch: int, rows: tuple[int, int], keys: torch.Tensor) -> torch.Tensor:
        """Whether each query sees each of the ``keys`` it chose, places ``[queries, width]`` in the sequence."""
        if not self._compact:
            return self.block(batch, rows, (0, self._mask.shape[2])).gather(1, keys)
        place = self.first + torch.arange(*rows, device=self._mask.device)[:, None]
        visible = keys <= place
        return visible & (self._mask[batch, 0][keys] == 0) if self._padded else visible
