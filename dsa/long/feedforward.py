"""Runs the feed-forward parts of a loaded model's layers in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..overrides import Overrides

# Enough rows for every expert's products to fill a GPU; each takes several times its hidden state.
FEED_FORWARD_ROWS = 16384


class ChunkedFeedForward:
    """Overrides ``forward`` of each layer's ``mlp``, which treats every position by itself.

    A mixture of experts copies each row once for every expert that it is sent to: at 200K tokens that is more
    than attention takes. Offloaded weights would be fetched for every chunk, so such layers stay whole.

    Args:
        model: a transformers model.
        stack_name: the path of its decoder layers.
    """

    def __init__(self, model: nn.Module, stack_name: str) -> None:
        layers: list[Any] = list(model.get_submodule(stack_name).children())
        self._overrides = Overrides()
        for layer in layers:
            if not any(weight.is_meta for weight in layer.mlp.parameters()):
                self._overrides.replace(layer.mlp, "forward", _in_chunks)

    def remove(self) -> None:
        """Gives the layers their own forwards back."""
        self._overrides.undo()


def _in_chunks(stock_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        tokens = hidden.shape[1]
        if tokens <= FEED_FORWARD_ROWS or args or kwargs:  # anything beside the rows might belong to single ones
            return stock_forward(hidden, *args, **kwargs)
        out = torch.empty_like(hidden)
        for first in range(0, tokens, FEED_FORWARD_ROWS):
            out[:, first : first + FEED_FORWARD_ROWS] = stock_forward(hidden[:, first : first + FEED_FORWARD_ROWS])
        return out

    return forward
