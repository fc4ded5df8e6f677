"""Runs a model's decoder layers one at a time, with the model's own embedding and head around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .switch import restore

# The stack's entry point for a selection made by an earlier layer, in families that share natively.
_PREVIOUS_SELECTION = "prev_topk_indices"


@dataclass(frozen=True)
class LayerCalls:
    """How the model calls its layers for one batch.

    Args:
        hidden: what enters the first layer, ``[rows, tokens, ...]``.
        kwargs: each layer's keyword arguments, masks and position embeddings among them.
    """

    hidden: torch.Tensor
    kwargs: tuple[dict[str, Any], ...]


class Stack:
    """The decoder layers of ``model``, callable singly.

    The model's own forward prepares what the layers need and turns their result into logits, with
    the layers replaced by stubs meanwhile, so that nothing of it is written here a second time.

    Args:
        model: a transformers model with a language-model head.
        name: the path of its ``ModuleList`` of decoder layers.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        layers = model.get_submodule(name)
        if not isinstance(layers, nn.ModuleList):
            raise TypeError(f"{name} is not a ModuleList")
        self._model = model
        self.layers = list(layers)
        self._outputs: int | None = None

    def __len__(self) -> int:
        return len(self.layers)

    def record(self, input_ids: torch.Tensor) -> LayerCalls:
        """Runs the model on ``input_ids`` ``[rows, tokens]`` and notes how it calls each layer."""
        hidden: list[torch.Tensor] = []
        kwargs: list[dict[str, Any]] = []

        def stub(index: int, own_forward: Callable[..., Any]) -> Callable[..., Any]:
            def forward(states: torch.Tensor, **given: Any) -> Any:
                if index == 0:
                    hidden.append(states)
                    if self._outputs is None:
                        out = own_forward(states, **given)
                        self._outputs = len(out) if isinstance(out, tuple) else 0
                kwargs.append(given)
                return self._mirror(states)

            return forward

        with self._stubbed(stub):
            self._run(input_ids, logits_to_keep=1)
        return LayerCalls(hidden[0], tuple(kwargs))

    def run_layer(self, index: int, states: torch.Tensor, calls: LayerCalls, selection: Any) -> torch.Tensor:
        """What layer ``index`` makes of ``states``; ``selection`` is the last full site's choice."""
        kwargs = calls.kwargs[index]
        if _PREVIOUS_SELECTION in kwargs:
            kwargs = {**kwargs, _PREVIOUS_SELECTION: selection}
        out = self.layers[index](states, **kwargs)
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def logits(self, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits ``[rows, tokens, vocabulary]`` from the last layer's ``states`` for ``input_ids``.

        Everything after the layers works position by position, so a slice of a sequence may be given.
        """
        last = len(self.layers) - 1

        def stub(index: int, own_forward: Callable[..., Any]) -> Callable[..., Any]:
            def forward(entering: torch.Tensor, **given: Any) -> Any:
                return self._mirror(states if index == last else entering)

            return forward

        with self._stubbed(stub):
            logits: torch.Tensor = self._run(input_ids).logits
        return logits

    def _run(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return self._model(input_ids=input_ids, use_cache=False, return_dict=True, **kwargs)

    def _mirror(self, states: torch.Tensor) -> Any:
        """``states`` in the form that the model expects back from a layer."""
        return (states, *[None] * (self._outputs - 1)) if self._outputs else states

    @contextmanager
    def _stubbed(self, stub: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        overridden = [layer.__dict__.get("forward") for layer in self.layers]
        try:
            for index, layer in enumerate(self.layers):
                layer.forward = stub(index, layer.forward)
            yield
        finally:
            for layer, own in zip(self.layers, overridden, strict=True):
                restore(layer, "forward", own)
