"""How many bytes a checkpoint takes on disk, in a sweep and in memory, by its headers or its config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import ModelError
from ..checkpoint.config import Checkpoint
from ..checkpoint.sizes.count import layer_sizes, resident_parameters
from ..checkpoint.stored.shards import Tensor, are_pickled, read_shards, weight_files
from ..checkpoint.stored.unread import unread
from .formats.foreign import Foreign
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
        resident: of what stays on the device: embedding, last norm and head.
        quantised: whether layers are dequantised.
        missing: why the headers were not read; "" where they were, and sizes are theirs and not the config's.
    """

    form: str
    files: int | None
    layers: tuple[int, ...]
    plain: tuple[int, ...]
    resident: int
    quantised: bool
    missing: str = ""

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
    plain = None if counted is None else tuple(value * layer.parameters for layer in counted)
    resident = None if outside is None else value * outside
    try:
        names = weight_files(checkpoint.folder, checkpoint.model_id)
        tensors = {
            name: tensor
            for shard in read_shards(checkpoint.folder, [] if are_pickled(names) else names)
            for name, tensor in shard.tensors.items()
        }
        files = sum((checkpoint.folder / name).stat().st_size for name in names)
    except (ModelError, OSError) as error:
        if plain is None or resident is None:
            return None
        return _computed(checkpoint, plain, resident, value, error.args[0] if error.args else str(error))
    return _stored(checkpoint, tensors, files, plain, value)


def _computed(
    checkpoint: Checkpoint, plain: Sequence[int], resident: int, value_bytes: int, missing: object
) -> Footprint:
    """By the config alone: all of a layer is taken to be stored in as few bits as most of it."""
    known = checkpoint_format(checkpoint)
    bits = (known and known.bits) or 8 * value_bytes
    return Footprint(
        form=_form(checkpoint, _dtype(checkpoint)),
        files=None,
        layers=tuple(size * bits // (8 * value_bytes) for size in plain),
        plain=tuple(plain),
        resident=resident,
        quantised=known is not None,
        missing=str(missing),
    )


def _stored(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    files: int,
    plain: Sequence[int] | None,
    value_bytes: int,
) -> Footprint:
    """By the headers of all files; what the decoder does not ask for is left out."""
    quantised = checkpoint_format(checkpoint) is not None
    ignored = unread(tensors, checkpoint, quantised)
    layers, numbers, resident = [0] * checkpoint.layers, [0] * checkpoint.layers, 0
    kinds: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name in ignored:
            continue
        kinds[tensor.dtype] += tensor.size
        layer = _LAYER.match(name)
        count = 0 if _SCALES.search(name) else tensor.numbers
        if layer is None:
            resident += value_bytes * count
        elif int(layer[1]) < checkpoint.layers:
            layers[int(layer[1])] += tensor.size
            numbers[int(layer[1])] += count
    stored_type = kinds.most_common(1)[0][0] if kinds else ""
    return Footprint(
        form=_form(checkpoint, _NAMES.get(stored_type, stored_type)),
        files=files,
        layers=tuple(layers),
        plain=tuple(plain) if plain is not None else tuple(value_bytes * count for count in numbers),
        resident=resident,
        quantised=quantised,
    )


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
