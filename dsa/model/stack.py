"""Runs a model's decoder layers one at a time, with the model's own embedding and head around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ..checkpoint.families import CARRYING_ARGUMENTS, SELECTION_ARGUMENTS, family_of
from ..checkpoint.sites import decoder_layers
from ..overrides import Overrides
from ..stream.layers import stream_of


@dataclass(frozen=True)
class State:
    """What enters a layer.

    Args:
        hidden: hidden states ``[1, tokens, ...]``.
        selection: the last full site's; None before the first one.
        carried: what earlier layers wrote down for later ones, by the name of the argument; tensors in
            it are never written to, so states may share them.
    """

    hidden: torch.Tensor
    selection: Any = None
    carried: Mapping[str, Mapping[str, tuple[torch.Tensor, ...]]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory that the tensors take."""
        tensors = [value for value in (self.hidden, self.selection) if isinstance(value, torch.Tensor)]
        for store in self.carried.values():
            tensors += [tensor for entry in store.values() for tensor in entry]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class LayerCalls:
    """How the model calls its layers for one batch.

    Args:
        hidden: what enters the first layer, ``[rows, tokens, ...]``.
        kwargs: each layer's keyword arguments, masks and position embeddings among them.
    """

    hidden: torch.Tensor
    kwargs: tuple[dict[str, Any], ...]

    @property
    def without_hidden(self) -> LayerCalls:
        """The arguments alone."""
        return LayerCalls(self.hidden.new_empty(0), self.kwargs)

    def sharing(self, other: LayerCalls) -> LayerCalls:
        """The same with tensors of ``other`` in place of equal ones: windows of one length have one mask."""
        kept: dict[int, Any] = {}

        def alike(value: Any, known: Any) -> Any:
            if not (isinstance(value, torch.Tensor) and isinstance(known, torch.Tensor)):
                return value
            if id(value) not in kept:  # many layers have one mask
                same_form = (value.shape, value.dtype) == (known.shape, known.dtype)
                kept[id(value)] = known if same_form and torch.equal(value, known) else value
            return kept[id(value)]

        pairs = zip(self.kwargs, other.kwargs, strict=True)
        kwargs = (
            {name: alike(value, known.get(name)) for name, value in called.items()} for called, known in pairs
        )
        return LayerCalls(self.hidden, tuple(kwargs))


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
        # Models stop there too: multi-token prediction may stand behind.
        self.layers = list(layers)[: decoder_layers(model)]
        self._outputs: int | None = None
        self.stream = stream_of(model)
        """Brings the layers' weights; None where all of them stay on their device."""

    def __len__(self) -> int:
        return len(self.layers)

    def sweep(self, first: int = 0) -> Iterator[int]:
        """The numbers of the layers from ``first`` on, in order; a streamed one's weights are there in its turn.

        Where several processes bring weights together, all of them sweep alike.
        """
        return iter(range(first, len(self))) if self.stream is None else self.stream.sweep(first)

    def anywhere(self, needed: bool) -> bool:
        """Whether a sweep is needed here, or on any process that brings weights together with this one."""
        return needed if self.stream is None else self.stream.anywhere(needed)

    def record(self, input_ids: torch.Tensor) -> LayerCalls:
        """Runs the model on ``input_ids`` ``[rows, tokens]`` and notes how it calls each layer."""
        hidden: list[torch.Tensor] = []
        arguments: list[dict[str, Any]] = []

        def stub(index: int, stock_forward: Callable[..., Any]) -> Callable[..., Any]:
            def forward(states: torch.Tensor, **kwargs: Any) -> Any:
                if index == 0:
                    hidden.append(states)
                    if self._outputs is None:
                        # Run once, to learn in which form the model expects a layer's result.
                        out = stock_forward(states, **kwargs)
                        self._outputs = len(out) if isinstance(out, tuple) else 0
                arguments.append(kwargs)
                return self._mirror(states)

            return forward

        with self._stubbed(stub):
            self._run(input_ids, logits_to_keep=1)
        self._check_handed_on(arguments)
        return LayerCalls(hidden[0], tuple(arguments))

    def run_layer(
        self, index: int, state: State, calls: LayerCalls
    ) -> tuple[torch.Tensor, Mapping[str, Mapping[str, tuple[torch.Tensor, ...]]]]:
        """What layer ``index`` makes of ``state``: hidden states, and what it carries on from there."""
        kwargs, carried = dict(calls.kwargs[index]), {}
        for name in kwargs.keys() & SELECTION_ARGUMENTS:
            kwargs[name] = state.selection
        for name in kwargs.keys() & CARRYING_ARGUMENTS:
            # Copied, as layers write into it and other branches go on from the same state.
            kwargs[name] = carried[name] = type(kwargs[name])(state.carried.get(name, {}))
        out = self.layers[index](state.hidden, **kwargs)
        return out[0] if isinstance(out, tuple) else out, carried

    def logits(self, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits ``[rows, tokens, vocabulary]`` from the last layer's ``states`` for ``input_ids``.

        Everything after the layers works position by position, so a slice of a sequence may be given.
        """
        last = len(self.layers) - 1

        def stub(index: int, stock_forward: Callable[..., Any]) -> Callable[..., Any]:
            def forward(entering: torch.Tensor, **kwargs: Any) -> Any:
                # The model goes on from what its last layer returns; the other stubs only let it get there.
                return self._mirror(states if index == last else entering)

            return forward

        with self._stubbed(stub):
            logits: torch.Tensor = self._run(input_ids).logits
        return logits

    def _run(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return self._model(input_ids=input_ids, use_cache=False, return_dict=True, **kwargs)

    def _check_handed_on(self, arguments: Sequence[Mapping[str, Any]]) -> None:
        """What a known family hands from layer to layer has to be among the arguments, or branches would mix."""
        config = getattr(self._model, "config", None)
        family = None if config is None else family_of(config)
        if family is None:
            return
        names = [name for name in (family.passes_selection, family.carries) if name is not None]
        if missing := [name for name in names if not any(name in kwargs for kwargs in arguments)]:
            raise ModelError(
                f"the layers of this {family.model_type} are not called with {' or '.join(missing)}"
                ", in which they are known to hand on to each other",
                hint="this release of transformers may have renamed it; see the versions in pyproject.toml",
            )

    def _mirror(self, states: torch.Tensor) -> Any:
        """``states`` in the form that the model expects back from a layer."""
        return (states, *[None] * (self._outputs - 1)) if self._outputs else states

    @contextmanager
    def _stubbed(self, stub: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        with Overrides() as overrides:
            for index, layer in enumerate(self.layers):
                overrides.replace(layer, "forward", partial(stub, index))
            yield
