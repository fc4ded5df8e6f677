"""Loads a checkpoint layer by layer, straight to where each layer is to be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights

from ...errors import ModelError
from ...system import processes
from ..checkpoint.architectures import model_class
from ..checkpoint.config import Checkpoint
from ..checkpoint.dtypes import compute_dtype
from ..checkpoint.load import rehearse
from ..checkpoint.sites import decoder_layers, expected_indexers
from ..checkpoint.stored.shards import Shard, Tensor
from ..checkpoint.stored.weights import StoredWeights
from .conversion import Conversion
from .fetch import Fetcher, StoredLayer, largest_run
from .layers import LayerStream, Plain
from .layout import Layout, lay_out
from .room import Homes, LayerSizes, Room, homes
from .slots import Slots


@dataclass(frozen=True)
class _Parts:
    """A checkpoint's stored tensors, by where they go.

    Args:
        stack: the name of the model's list of decoder layers.
        layers: of each of them.
        resident: of everything else that the model asks for.
    """

    stack: str
    layers: tuple[Layout, ...]
    resident: Layout


def load(checkpoint: Checkpoint, weights: StoredWeights, dtype: str, room: Room) -> Any:
    """The model in evaluation mode, gradients off, on this process's device as far as its weights have room there.

    Args:
        checkpoint: what to load.
        weights: of it, in safetensors.
        dtype: "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
        room: that weights may take.

    Raises:
        ModelError: weights that are damaged, or not those of the config.
        MeasurementError: the device is too small for one layer.
    """
    stored = {name: (shard, tensor) for shard in weights.shards for name, tensor in shard.tensors.items()}
    computes_in = compute_dtype(checkpoint, dtype)
    types = rehearse(checkpoint, {name: tensor for name, (_, tensor) in stored.items()}, computes_in, plain=True)
    model = _skeleton(checkpoint, computes_in)
    conversion = Conversion(model, types or {})
    parts = _parts(model, checkpoint, stored, conversion)
    return _Loading(model, parts, conversion, dict).run(room)


def _skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model without weights; what it computes when it is built, and no file holds, is there."""
    auto_class = model_class(checkpoint.config, checkpoint.trust.remote_code)
    config = copy.deepcopy(checkpoint.config)
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(config, dtype=dtype, trust_remote_code=checkpoint.trust.remote_code)
    return model.requires_grad_(False).eval()


def _parts(
    model: Any, checkpoint: Checkpoint, stored: Mapping[str, tuple[Shard, Tensor]], conversion: Conversion
) -> _Parts:
    stack, _ = expected_indexers(model, checkpoint.site_layers)
    count = decoder_layers(model) or len(model.get_submodule(stack))
    layers: list[dict[str, tuple[Shard, Tensor]]] = [{} for _ in range(count)]
    resident: dict[str, tuple[Shard, Tensor]] = {}
    for name, place in stored.items():
        parameter = conversion.parameter(name)
        if parameter is None:
            continue
        number = parameter.removeprefix(f"{stack}.").partition(".")[0]
        is_layer = parameter.startswith(f"{stack}.") and int(number) < count
        (layers[int(number)] if is_layer else resident)[name] = place
    return _Parts(stack, tuple(map(lay_out, layers)), lay_out(resident))


class _Loading:
    """One load: the resident parts, the layers that stay, and the stream of the others.

    Args:
        model: without weights.
        parts: what is stored for it.
        conversion: makes parameters of stored tensors.
        plain: makes plain numbers of stored ones.
    """

    def __init__(self, model: Any, parts: _Parts, conversion: Conversion, plain: Plain) -> None:
        self._model, self._parts, self._conversion, self._plain = model, parts, conversion, plain
        self._device = processes.process_device()
        prefixes = tuple(f"{parts.stack}.{number}." for number in range(len(parts.layers)))
        self._resident = Slots(model, without=prefixes)
        self._slots = [Slots(model, prefix) for prefix in prefixes]

    def run(self, room: Room) -> Any:
        layers = [StoredLayer(layout) for layout in self._parts.layers]
        places = self._places(room)
        streamed = {number: layers[number] for number in (*places.host, *places.files)}
        together = processes.process_count() if streamed else 1
        rank = processes.process_index() if streamed else 0
        largest = largest_run(layers) if together > 1 else largest_run(list(streamed.values()))
        fetcher = Fetcher(self._device, largest, together, rank)
        self._fill(self._resident, fetcher.alone(StoredLayer(self._parts.resident)))
        self._model.tie_weights()
        self._move_buffers()
        for number in places.device:
            self._fill(self._slots[number], self._bring(fetcher, layers[number], together))
            fetcher.done()
        for number in places.host:
            fetcher.keep(layers[number])
        if streamed:
            least = _least if together > 1 else None
            LayerStream(
                self._model, self._parts.stack, len(layers), streamed, self._conversion, self._plain, fetcher, least
            )
        return self._model

    def _places(self, room: Room) -> Homes:
        sizes = [
            LayerSizes(layout.stored, slots.bytes(self._conversion.types))
            for layout, slots in zip(self._parts.layers, self._slots, strict=True)
        ]
        resident = self._resident.bytes(self._conversion.types)
        everything = resident + sum(size.plain for size in sizes)
        device = everything if room.device is None else room.device
        host = sum(size.stored for size in sizes) if room.host is None else room.host
        # Alike on all processes, which sweep together: the least that one of them has.
        device, host = (_least(size) for size in (device, host))
        return homes(sizes, resident, device, host)

    def _bring(self, fetcher: Fetcher, layer: StoredLayer, together: int) -> dict[str, torch.Tensor]:
        """A layer that stays: of several processes each reads a part, where they hold a buffer for it."""
        if together == 1:
            return fetcher.alone(layer)
        return fetcher.tensors(fetcher.start(layer), layer)

    def _fill(self, slots: Slots, tensors: dict[str, torch.Tensor]) -> None:
        tensors = self._plain(tensors)
        slots.fill(self._conversion.parameters(self._conversion.targets(tensors), tensors))

    def _move_buffers(self) -> None:
        """Brings what the model computed when it was built to the device."""
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device.type != "meta":
                    module._buffers[name] = buffer.to(self._device)


def _least(number: int) -> int:
    """The least of all processes' numbers."""
    return min(processes.merge({processes.process_index(): number}).values())
