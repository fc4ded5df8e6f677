"""Which files a checkpoint's weights are in, and what safetensors headers say of them; damaged ones refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import ModelError, first_line, one_line
from ....system.documents import check_showable, parse_json
from ....system.files import refuse_pointer

INDEX = "model.safetensors.index.json"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
WHOLE, _PICKLED_WHOLE = "model.safetensors", "pytorch_model.bin"
# As in safetensors itself.
_LARGEST_HEADER = 100_000_000
_BITS = {"BOOL": 8, "F4": 4, "C64": 64}
_DTYPE = re.compile(r"(?:BF|F|I|U)(\d+)(?:_\w+)?")
# Torch's names for what headers call the types, where both count numbers alike.
TORCH_NAMES = {
    "BF16": "bfloat16", "BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I16": "int16",
    "I32": "int32", "I64": "int64", "I8": "int8", "U8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it: its bytes are those from ``start`` to ``end`` of the file's data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its tensors, its metadata, and where its data begins."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None
    data: int


def weight_files(folder: Path, model_id: str, allow_pickle: bool = False) -> list[str]:
    """Names of the files in ``folder`` that a checkpoint loads: safetensors, or pickles if there is nothing else.

    As transformers has it, a whole file goes before an index that stands beside it.

    Raises:
        ModelError: there are none, one is missing, the index is broken, or they are pickles and not allowed.
    """
    for index, whole in ((INDEX, WHOLE), (_PICKLED_INDEX, _PICKLED_WHOLE)):
        pickled = whole == _PICKLED_WHOLE
        if not (folder / index).is_file() and not (folder / whole).is_file():
            continue
        if pickled and not allow_pickle:
            raise ModelError(
                f"{model_id!r} holds pickled weights only, which are programs and can do anything",
                hint="convert them to safetensors, or load them with --allow-pickle",
            )
        names = [whole] if (folder / whole).is_file() else _indexed(folder, index, model_id)
        for name in names:
            refuse_pointer(folder / name, ModelError)
        return names
    raise ModelError(
        f"{model_id!r} holds no weights", hint="safetensors are looked for, and pickles with --allow-pickle"
    )


def _weight_map(folder: Path, index: str, model_id: str) -> dict[str, str]:
    """The file of each tensor, as an index says."""
    refuse_pointer(folder / index, ModelError)
    try:
        weight_map = dict(parse_json((folder / index).read_text("utf-8"))["weight_map"].items())
        # A path in the index could lead out of the checkpoint.
        if not weight_map or any(Path(name).name != name for name in weight_map.values()):
            raise ValueError("names that are no files of the folder")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
        reason = f": {one_line(first_line(error))[:200]}" if isinstance(error, ValueError) else ""
        raise ModelError(
            f"{index} of {model_id!r} is broken{reason}", hint="fetch the checkpoint again"
        ) from error
    return weight_map


def are_pickled(names: list[str]) -> bool:
    """Whether the weight files of these names are pickles."""
    return not all(name.endswith(".safetensors") for name in names)


def check_index(folder: Path, shards: Sequence[Shard], model_id: str) -> None:
    """Holds what an index names against what the files hold; which of them holds a tensor does not matter.

    Raises:
        ModelError: a tensor is in none of them, so that a file is of another checkpoint, or the index is.
    """
    if not shards or (folder / WHOLE).is_file():  # no index was read
        return
    weight_map = _weight_map(folder, INDEX, model_id)
    held = {name for shard in shards for name in shard.tensors}
    if absent := [name for name in weight_map if name not in held]:
        more = f" and {len(absent) - 1} more tensors" if len(absent) > 1 else ""
        raise ModelError(
            f"{INDEX} of {model_id!r} names {absent[0]}{more}, which {weight_map[absent[0]]!r} does not hold",
            hint="the two are of different checkpoints: fetch the checkpoint again",
        )


def _indexed(folder: Path, index: str, model_id: str) -> list[str]:
    names = sorted(set(_weight_map(folder, index, model_id).values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{model_id!r} lacks {missing[0]!r}, which its index names", hint="fetch the checkpoint again"
        )
    return names


def read_shards(folder: Path, names: list[str]) -> list[Shard]:
    """The headers of the safetensors files ``names``.

    Raises:
        ModelError: one is damaged, or a tensor stands in two.
    """
    shards = [_read_shard(folder / name) for name in names]
    holders: dict[str, Path] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in holders:
                raise ModelError(
                    f"{str(shard.path)!r} holds tensor {name!r}, which {holders[name].name!r} holds too",
                    hint="fetch the checkpoint again",
                )
            holders[name] = shard.path
    return shards


def _read_shard(path: Path) -> Shard:
    refuse_pointer(path, ModelError)
    try:
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            if length > min(_LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = parse_json(file.read(length).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no list of tensors")
        metadata = header.pop("__metadata__", None)
        check_showable(list(header))
        tensors = {name: _tensor(name, entry) for name, entry in header.items()}
        _check_extents(tensors, size - 8 - length)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{str(path)!r} is no whole safetensors file: {error}", hint="fetch the checkpoint again"
        ) from error
    return Shard(path, tensors, metadata, 8 + length)


def _tensor(name: str, entry: Any) -> Tensor:
    try:
        dtype, shape, (start, end) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
        numbers = [start, end, *shape]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"tensor {name!r} lacks its dtype, shape or place") from None
    if any(type(number) is not int or number < 0 for number in numbers) or end < start:
        raise ValueError(f"tensor {name!r} has an impossible shape or place")
    tensor, match = Tensor(dtype, tuple(shape), start, end), _DTYPE.fullmatch(dtype)
    bits = _BITS.get(dtype) or (int(match[1]) if match else None)
    if bits is not None and tensor.numbers * bits != tensor.size * 8:
        raise ValueError(f"tensor {name!r} does not have the size of its shape")
    return tensor


def _check_extents(tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuses tensors that overlap, leave gaps, or do not end where the file does."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: (entry[1].start, entry[1].end)):
        if tensor.start != end:
            raise ValueError(f"tensor {name!r} starts at {tensor.start}, where the one before ends at {end}")
        end = tensor.end
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, but it holds {size}")
