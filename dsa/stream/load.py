"""Loads a checkpoint layer by layer, straight to where each layer is to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights

from ...errors import SettingError
from ...system import processes
from ..checkpoint.architectures import model_class, plain_config
from ..checkpoint.config import Checkpoint
from ..checkpoint.dtypes import compute_dtype
from ..checkpoint.load import Placement, load_model, rehearse, stored_tensors
from ..checkpoint.sites import decoder_layers, expected_indexers
from ..checkpoint.stored.shards import Tensor
from ..checkpoint.stored.unread import check_complete
from ..checkpoint.stored.weights import StoredWeights
from .conversion import Conversion, Target
from .fetch import Fetcher, StoredLayer, largest_run
from .formats.foreign import Foreign
from .formats.quantised import StoredFormat
from .formats.recognise import check_tensors, checkpoint_format
from .layers import LayerStream
from .layout import TYPES, Layout, lay_out
from .memory import give_back_what_is_freed
from .room import Homes, LayerSizes, Room, homes
from .slots import Slots


@dataclass(frozen=True)
class _Part:
    """A part of a checkpoint: a layer, or everything that is none.

    Args:
        layout: of its stored tensors.
        targets: what is made of them.
    """

    layout: Layout
    targets: Sequence[Target]


def load_measured(checkpoint: Checkpoint, weights: StoredWeights, dtype: str, room: Room) -> Any:
    """The model of a checkpoint to be measured: a layer at a time, or whole where transformers alone reads it.

    Raises:
        ModelError: weights that are damaged, in a format that nothing reads here, or not those of the config.
        MeasurementError: the device is too small for one layer.
    """
    known = checkpoint_format(checkpoint)
    if isinstance(known, Foreign):
        known.quantiser()  # or transformers says in its own words what is not there
    if weights.pickled or isinstance(known, Foreign):
        return load_model(checkpoint, weights, dtype, Placement())
    return load_layers(checkpoint, weights, dtype, room, known)


def loads_whole(checkpoint: Checkpoint, weights: StoredWeights) -> bool:
    """Whether transformers alone reads the weights, whole and into memory: pickles, and formats of packages."""
    return weights.pickled or isinstance(checkpoint_format(checkpoint), Foreign)


def load_whole(checkpoint: Checkpoint, weights: StoredWeights, dtype: str, placement: Placement) -> Any:
    """The model of a checkpoint to be used as a whole; transformers places it where ``placement`` says so.

    Raises:
        ModelError: see ``load_measured``.
        SettingError: a device map for weights that are dequantised here.
    """
    known = checkpoint_format(checkpoint)
    if isinstance(known, Foreign):
        known.quantiser()  # says whether its package is there
    check_stored(checkpoint, weights)
    if placement.device_map is None:
        return load_measured(checkpoint, weights, dtype, Room())
    if isinstance(known, StoredFormat):
        raise SettingError(
            f"the weights of {checkpoint.model_id!r}, in {known.words}, are dequantised onto one device, which a "
            "device map does not do",
            hint="leave --device-map out, or load a copy in bfloat16",
        )
    return load_model(checkpoint, weights, dtype, placement)


def check_stored(checkpoint: Checkpoint, weights: StoredWeights) -> None:
    """Holds a checkpoint's tensors, by their headers, against the format that its config names.

    Raises:
        ModelError: they are not in it.
    """
    check_tensors(checkpoint, stored_tensors(checkpoint, weights), checkpoint_format(checkpoint))


def load_layers(
    checkpoint: Checkpoint, weights: StoredWeights, dtype: str, room: Room, known: StoredFormat | None = None
) -> Any:
    """The model in evaluation mode, gradients off, on this process's device as far as its weights have room there.

    Args:
        checkpoint: what to load.
        weights: of it, in safetensors.
        dtype: "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
        room: that weights may take.
        known: the format of its quantised weights; None where all are plain.

    Raises:
        ModelError: weights that are damaged, or not those of the config.
        MeasurementError: the device is too small for one layer.
    """
    stored = {name: (shard, tensor) for shard in weights.shards for name, tensor in shard.tensors.items()}
    headers = {name: tensor for name, (_, tensor) in stored.items()}
    computes_in = compute_dtype(checkpoint, dtype)
    plain_headers = _plain_headers(headers, computes_in, known)
    types = rehearse(checkpoint, plain_headers, computes_in, plain=True)
    model = _skeleton(checkpoint, computes_in)
    shapes = {name: tensor.shape for name, tensor in plain_headers.items()}
    conversion = Conversion(model, types or {}, stored_parts(headers, known), shapes, known, computes_in)
    if types is None:  # transformers cannot go through this load without numbers
        check_complete(checkpoint, conversion.account(plain_headers))
    stack, _ = expected_indexers(model, checkpoint.site_layers)
    count = decoder_layers(model) or len(model.get_submodule(stack))
    resident: list[Target] = []
    layers: list[list[Target]] = [[] for _ in range(count)]
    for target in conversion.targets():
        number = target.name.removeprefix(f"{stack}.").partition(".")[0]
        is_layer = target.name.startswith(f"{stack}.") and int(number) < count
        (layers[int(number)] if is_layer else resident).append(target)

    def part(targets: Sequence[Target]) -> _Part:
        return _Part(lay_out({name: stored[name] for target in targets for name in target.stored}), targets)

    return _Loading(model, stack, list(map(part, layers)), part(resident), conversion).run(room)


def stored_parts(headers: Mapping[str, Tensor], known: StoredFormat | None) -> dict[str, Sequence[str]]:
    """Of each plain tensor, the stored ones that it is made of."""
    weights = {} if known is None else {weight.name: weight.stored for weight in known.weights(headers)}
    consumed = {name for names in weights.values() for name in names}
    return {**weights, **{name: (name,) for name in headers if name not in consumed}}


def _plain_headers(
    headers: Mapping[str, Tensor], dtype: torch.dtype, known: StoredFormat | None
) -> dict[str, Tensor]:
    """Headers of the tensors as plain numbers."""
    if known is None:
        return dict(headers)
    kind = next(name for name, stored in TYPES.items() if stored == dtype)
    shapes = known.plain_shapes(headers, kind)
    return {name: Tensor(kind, shape, 0, 0) for name, (kind, shape) in shapes.items()}


def _skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model without weights; what it computes when it is built, and no file holds, is there."""
    auto_class = model_class(checkpoint.config, checkpoint.trust.remote_code)
    config = plain_config(checkpoint.config)
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(config, dtype=dtype, trust_remote_code=checkpoint.trust.remote_code)
    return model.requires_grad_(False).eval()


class _Loading:
    """One load: the resident part, the layers that stay, and the stream of the others.

    Args:
        model: without weights.
        stack: the name of its list of decoder layers.
        layers: what is stored of each.
        resident: what is stored of everything else.
        conversion: makes parameters of it.
    """

    def __init__(
        self, model: Any, stack: str, layers: Sequence[_Part], resident: _Part, conversion: Conversion
    ) -> None:
        self._model, self._stack, self._layers, self._resident = model, stack, layers, resident
        self._conversion = conversion
        self._device = processes.process_device()
        prefixes = tuple(f"{stack}.{number}." for number in range(len(layers)))
        self._resident_slots = Slots(model, without=prefixes)
        self._slots = [Slots(model, prefix) for prefix in prefixes]

    def run(self, room: Room) -> Any:
        """The model, loaded."""
        places = self._places(room)
        layers = [StoredLayer(part.layout) for part in self._layers]
        streamed = {number: layers[number] for number in (*places.shared, *places.host, *places.files)}
        together, rank = (processes.process_count(), processes.process_index()) if streamed else (1, 0)
        brought = layers if together > 1 else list(streamed.values())
        if streamed:
            give_back_what_is_freed()
        fetcher = Fetcher(self._device, largest_run(brought), together, rank)
        self._fill(self._resident_slots, self._resident, fetcher.alone(StoredLayer(self._resident.layout)))
        self._model.tie_weights()
        self._move_buffers()
        for number in places.device:
            layer = layers[number]
            # Of several processes each reads a part, where they have a buffer to gather it in.
            alone = together == 1
            tensors = fetcher.alone(layer) if alone else fetcher.tensors(fetcher.start(layer), layer)
            self._fill(self._slots[number], self._layers[number], tensors)
            fetcher.done()
        for number in (*places.shared, *places.host):
            fetcher.keep(layers[number], on_device=number in places.shared)
        fetcher.rest()
        if streamed:
            targets = {number: self._layers[number].targets for number in streamed}
            least = processes.least if together > 1 else None
            count = len(layers)
            LayerStream(self._model, self._stack, count, streamed, targets, self._conversion, fetcher, least)
        return self._model

    def _places(self, room: Room) -> Homes:
        types = self._conversion.types
        sizes = [
            LayerSizes(
                part.layout.stored, slots.bytes(types), max(map(self._conversion.making, part.targets), default=0)
            )
            for part, slots in zip(self._layers, self._slots, strict=True)
        ]
        resident = self._resident_slots.bytes(types)
        device = resident + sum(size.plain for size in sizes) if room.device is None else room.device
        host = sum(size.stored for size in sizes) if room.host is None else room.host
        # Alike on all processes, which sweep together: the least that one of them has.
        return homes(sizes, resident, processes.least(device), processes.least(host), processes.process_count())

    def _fill(self, slots: Slots, part: _Part, tensors: dict[str, torch.Tensor]) -> None:
        slots.fill(self._conversion.parameters(part.targets, tensors))

    def _move_buffers(self) -> None:
        """Brings what the model computed when it was built to the device."""
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device.type != "meta":
                    module._buffers[name] = buffer.to(self._device)
