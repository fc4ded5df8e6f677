"""How many bytes a checkpoint takes on disk, in a sweep and in memory, by its headers or its config."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import ModelError
from ..checkpoint.config import Checkpoint
from ..checkpoint.sizes.count import LayerSizes, layer_sizes, resident_parameters
from ..checkpoint.stored.shards import Tensor, are_pickled, read_shards, weight_files
from ..checkpoint.stored.unread import is_of_tower, unread
from .formats.foreign import Foreign
from .formats.quantised import WORKING_BYTES, StoredFormat
from .formats.recognise import checkpoint_format

_LAYER = re.compile(r"(?:\w+\.)*?layers\.(\d+)\.")
_SCALES = re.compile(
    r"_scale(?:_inv)?$|\.(?:scale|qscale_weight|scales|weight_shape|qzeros|g_idx|weight_zero_point)$"
)
_VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Footprint:
    """Bytes of a checkpoint whose decoder layers come to a device one after the other.

    Args:
        form: how its weights are stored, in words.
        files: bytes of all weight files; None where they are not here.
        layers: of each decoder layer as stored, which is what moves.
        plain: of each decoder layer as it computes, dequantised where it has to be.
        resident: of what stays on the device: embedding, last norm and head, and what stands beside them.
        quantised: whether layers are dequantised.
        missing: why the headers were not read; "" where they were, and sizes are theirs and not the config's.
        beside: of the resident bytes those of towers, as for images, which are loaded though text runs past them.
        making: that are taken beside the largest layer, as stored and as it computes, while it is made.
    """

    form: str
    files: int | None
    layers: tuple[int, ...]
    plain: tuple[int, ...]
    resident: int
    quantised: bool
    missing: str = ""
    beside: int = 0
    making: int = 0

    @property
    def streamed(self) -> int:
        """Bytes that move in a sweep through all layers."""
        return sum(self.layers)

    @property
    def in_memory(self) -> int:
        """Bytes of the whole language model as it computes."""
        return sum(self.plain) + self.resident


def footprint(checkpoint: Checkpoint, value_bytes: int | None = None) -> Footprint | None:
    """Sizes by the headers of the weight files that are here, else by the config; None where neither tells.

    Args:
        checkpoint: whose weights they are; nothing is downloaded.
        value_bytes: of a number as it computes; those of the config's type by default.

    Raises:
        ModelError: a quantization_config that says no format.
    """
    value = value_bytes or _VALUE_BYTES.get(_dtype(checkpoint), 2)
    counted, outside = layer_sizes(checkpoint), resident_parameters(checkpoint)
    try:
        names = weight_files(checkpoint.folder, checkpoint.model_id)
        tensors = {
            name: tensor
            for shard in read_shards(checkpoint.folder, [] if are_pickled(names) else names)
            for name, tensor in shard.tensors.items()
        }
        files = sum((checkpoint.folder / name).stat().st_size for name in names)
    except (ModelError, OSError) as error:
        if counted is None or outside is None:
            return None
        missing = str(error.args[0] if error.args else error)
        return _computed(checkpoint, counted, outside, value, missing)
    plain = None if counted is None else tuple(value * layer.parameters for layer in counted)
    return _stored(checkpoint, tensors, files, plain, value)


def _computed(
    checkpoint: Checkpoint, layers: Sequence[LayerSizes], outside: tuple[int, int], value_bytes: int, missing: str
) -> Footprint:
    """By the config alone: its formats for experts, attention, indexers and the other matrices of each layer."""
    known = checkpoint_format(checkpoint)
    largest = 0
    if isinstance(known, StoredFormat):
        # No matrix is larger than all of attention, or than one of the three that are not of routed experts.
        largest = max(max(layer.attention, (layer.feed_forward - layer.routed) // 3) for layer in layers)
    return Footprint(
        form=_form(checkpoint, _dtype(checkpoint)),
        files=None,
        layers=tuple(
            _layer_as_stored(known, layer, number, 8 * value_bytes) for number, layer in enumerate(layers)
        ),
        plain=tuple(value_bytes * layer.parameters for layer in layers),
        resident=value_bytes * sum(outside),
        quantised=known is not None,
        missing=missing,
        beside=value_bytes * outside[1],
        making=WORKING_BYTES * largest,
    )


def _layer_as_stored(known: StoredFormat | Foreign | None, layer: LayerSizes, number: int, plain_bits: int) -> int:
    """Bytes of a layer: each part in the bits that the config has for its largest matrices."""
    stem, shared = f"model.layers.{number}", "shared_experts." if layer.routed else ""
    parts = {
        f"{stem}.self_attn.o_proj": layer.attention,
        f"{stem}.self_attn.indexer.wq_b": layer.indexer,
        f"{stem}.mlp.{shared}down_proj": layer.feed_forward - layer.routed,
        f"{stem}.mlp.experts.0.down_proj": layer.routed,
    }
    bits = {module: None if known is None else known.stored_bits(module) for module in parts}
    return round(sum(count * (bits[module] or plain_bits) / 8 for module, count in parts.items()))


def _stored(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    files: int,
    plain: Sequence[int] | None,
    value_bytes: int,
) -> Footprint:
    """By the headers of all files; what the model does not ask for is left out."""
    known = checkpoint_format(checkpoint)
    ignored = unread(tensors, checkpoint, known is not None)
    # A model that is loaded whole asks for its towers too.
    towers = set() if checkpoint.text_only else set(filter(is_of_tower, tensors))
    kept = {name: tensor for name, tensor in tensors.items() if name not in ignored and name not in towers}
    counts, largest = _plain_numbers(kept, known)
    layers, numbers, resident = [0] * checkpoint.layers, [0] * checkpoint.layers, 0
    kinds: Counter[str] = Counter()
    for name, tensor in kept.items():
        kinds[tensor.dtype] += tensor.size
        layer, count = _LAYER.match(name), counts.get(name, 0)
        if layer is None:
            resident += value_bytes * count
        elif int(layer[1]) < checkpoint.layers:
            layers[int(layer[1])] += tensor.size
            numbers[int(layer[1])] += count
    stored_type = kinds.most_common(1)[0][0] if kinds else ""
    beside = value_bytes * sum(tensors[name].numbers for name in towers)
    return Footprint(
        form=_form(checkpoint, _NAMES.get(stored_type, stored_type)),
        files=files,
        layers=tuple(layers),
        plain=tuple(plain) if plain is not None else tuple(value_bytes * count for count in numbers),
        resident=resident + beside,
        quantised=known is not None,
        beside=beside,
        making=WORKING_BYTES * largest,
    )


def _plain_numbers(
    tensors: Mapping[str, Tensor], known: StoredFormat | Foreign | None
) -> tuple[dict[str, int], int]:
    """How many numbers come of each stored tensor, none of scales; and how many of the largest quantised one."""
    counts = {name: 0 if _SCALES.search(name) else tensor.numbers for name, tensor in tensors.items()}
    if not isinstance(known, StoredFormat):
        return counts, 0
    try:
        weights = known.weights(tensors)
    except ModelError:  # they are not in the format that the config names: the load says so
        return counts, 0
    counts |= {name: 0 for weight in weights for name in weight.stored}
    counts |= {weight.codes: math.prod(weight.shape) for weight in weights}
    return counts, max((math.prod(weight.shape) for weight in weights), default=0)


def _dtype(checkpoint: Checkpoint) -> str:
    """The name of the type that the config names; fp32 where it names none, as in transformers."""
    return str(checkpoint.text.dtype or checkpoint.config.dtype or "float32").removeprefix("torch.")


def _form(checkpoint: Checkpoint, dtype: str) -> str:
    """How the weights are stored, in words; ``dtype`` is that of plain ones."""
    known = checkpoint_format(checkpoint)
    if known is None:
        return dtype
    how = "loaded whole by transformers" if isinstance(known, Foreign) else "dequantised a layer at a time"
    return f"{known.words}, {how}"
