"""A model's decoder layers whose weights are on the device while they run, and elsewhere meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..overrides import Overrides
from .conversion import Conversion, Target
from .fetch import Fetcher, StoredLayer
from .slots import Slots

_ATTRIBUTE = "_layer_stream"


def stream_of(model: nn.Module) -> LayerStream | None:
    """The stream of a model whose layers come and go; None where all its weights stay."""
    stream: LayerStream | None = getattr(model, _ATTRIBUTE, None)
    return stream


@contextmanager
def whole_forward(model: nn.Module) -> Iterator[None]:
    """Within it ``model`` runs once, as a whole; where its layers stream that is one sweep."""
    stream = stream_of(model)
    if stream is None:
        yield
        return
    with stream.forward():
        yield


class LayerStream:
    """Weights of layers that come to the device once a sweep, each while the one before computes.

    A layer stays while everything that a sweep measures goes through it. Any other forward of the model works
    too: there a layer's weights come when it is called, and go when another streamed one is.

    Args:
        model: its streamed layers are on the meta device.
        stack: the name of its list of decoder layers.
        layers: how many of them there are.
        stored: of each streamed layer, by number.
        targets: of each of them, what is made of its stored tensors.
        conversion: makes it.
        fetcher: brings the bytes.
        least: the least of all processes' numbers, where several gather; each has to ask.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: str,
        layers: int,
        stored: Mapping[int, StoredLayer],
        targets: Mapping[int, Sequence[Target]],
        conversion: Conversion,
        fetcher: Fetcher,
        least: Callable[[int], int] | None = None,
    ) -> None:
        self._layers, self._stored = layers, dict(stored)
        self._targets, self._conversion, self._fetcher, self._least = targets, conversion, fetcher, least
        self._slots = {number: Slots(model, f"{stack}.{number}.") for number in self._stored}
        self._replaced: dict[int, dict[str, torch.Tensor]] = {}
        self._present: int | None = None
        self._forward: Iterator[int] = iter(())
        self._overrides = Overrides()
        for number in self._stored:
            layer = model.get_submodule(f"{stack}.{number}")
            self._overrides.replace(layer, "forward", partial(_HeldForward, self, number))
        setattr(model, _ATTRIBUTE, self)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that came to this process's device so far, as stored."""
        return self._fetcher.weight_bytes

    @property
    def sweep_bytes(self) -> int:
        """Bytes of weights that a sweep through all layers brings, as stored."""
        return sum(layer.layout.stored for layer in self._stored.values())

    @property
    def layers(self) -> int:
        """All decoder layers, those that stay on the device too."""
        return self._layers

    @property
    def streamed(self) -> int:
        """How many of them come to the device for each sweep."""
        return len(self._stored)

    @property
    def host(self) -> tuple[int, ...]:
        """The layers that come from the host's memory."""
        return tuple(
            number for number, layer in self._stored.items() if layer.part is not None and not layer.shared
        )

    @property
    def shared(self) -> tuple[int, ...]:
        """The layers of which every process keeps a part on its device."""
        return tuple(number for number, layer in self._stored.items() if layer.shared)

    @property
    def files(self) -> tuple[int, ...]:
        """The layers that are read from files for each sweep."""
        return tuple(number for number, layer in self._stored.items() if layer.part is None)

    @property
    def file_bytes(self) -> int:
        """Bytes that a sweep through all layers reads from files, all processes together."""
        return sum(self._stored[number].layout.stored for number in self.files)

    @property
    def file_rate(self) -> float:
        """Bytes a second of all processes together, if each reads as this one has so far."""
        return self._fetcher.read_rate * self._fetcher.processes

    @property
    def gathers(self) -> bool:
        """Whether several processes bring a part of each layer, so that all have to sweep alike."""
        return self._least is not None

    def anywhere(self, needed: bool) -> bool:
        """Whether a sweep is needed on any of the processes that gather; each has to ask."""
        return needed if self._least is None else self._least(0 if needed else 1) == 0

    def sweep(self, first: int) -> Generator[int, None, None]:
        """The numbers of the layers from ``first`` on, the weights of each on the device in its turn.

        Processes that gather start at the first layer that any of them needs.
        """
        if self._least is not None:
            first = self._least(first)
        waiting = [number for number in sorted(self._stored) if number >= first]
        fetched = self._start(waiting)
        try:
            for number in range(first, self._layers):
                if number in self._stored:
                    assert fetched is not None
                    tensors = self._fetcher.tensors(fetched, self._stored[number])
                    self._release()
                    self._put(number, tensors)
                    tensors.clear()
                    self._fetcher.done()
                    fetched = self._start(waiting)
                yield number
        finally:
            self._release()
            if fetched is not None:  # the sweep was left early: the next one finds the buffer at rest
                fetched.exception()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Within it the model runs once as a whole, in one sweep; processes that gather do so alike."""
        sweep = self._forward = self.sweep(0)
        try:
            yield
        finally:
            self._forward = iter(())
            sweep.close()

    def hold(self, number: int) -> None:
        """Brings the weights of one layer, if they are not there, whatever other processes do."""
        # Within a forward the search for the layer is what moves its sweep on.
        if number != self._present and number not in self._forward:
            self._release()
            self._put(number, self._fetcher.alone(self._stored[number]))

    def brings(self, number: int) -> bool:
        """Whether the weights of a layer come and go."""
        return number in self._stored

    def replace(self, number: int, values: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Lets ``values`` stand in a streamed layer, by full name, whenever its weights come; in their types.

        Returns:
            What lets the values before stand there again.
        """
        before = self._replaced.get(number, {})
        self._replaced[number] = {**before, **values}
        # What is there now was filled without them.
        self._release()

        def give_back() -> None:
            self._replaced[number] = before
            self._release()

        return give_back

    def _start(self, waiting: list[int]) -> Future[Any] | None:
        return self._fetcher.start(self._stored[waiting.pop(0)]) if waiting else None

    def _put(self, number: int, tensors: dict[str, torch.Tensor]) -> None:
        self._slots[number].fill(self._conversion.parameters(self._targets[number], tensors))
        self._slots[number].replace(self._replaced.get(number, {}))
        self._present = number

    def _release(self) -> None:
        if self._present is not None:
            self._slots[self._present].empty()
            self._present = None


class _HeldForward:
    """A streamed layer's forward, which sees to it that its weights are there."""

    def __init__(self, stream: LayerStream, number: int, forward: Callable[..., Any]) -> None:
        self._stream, self._number, self._forward = stream, number, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._stream.hold(self._number)
        return self._forward(*args, **kwargs)
