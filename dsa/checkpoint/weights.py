"""A checkpoint's weights before they are loaded: their folder, their size, and what identifies them by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from ...errors import ModelError
from .config import Checkpoint, file_sha256
from .hub import fetch_weights
from .shards import Shard, Tensor, are_pickled, read_shards, weight_files

# "files" is how plans of schema version 1 identify weights; no new plan does.
WeightsHash: TypeAlias = Literal["sampled", "whole", "files"]

_SMALL_TENSOR = 64 << 10
_BLOCKS, _BLOCK = 4, 4 << 10
_PIECE = 1 << 24
# Whole up to here: seconds at most, and in small models a change can be small.
_SMALL_CHECKPOINT = 2 << 30
# Blocks are fetched one by one, so that a disk or network would mostly wait; hashing frees the interpreter.
_READERS = 8


def weights_folder(checkpoint: Checkpoint) -> Path:
    """The local folder of the weights, which are downloaded if they are on the hub.

    Raises:
        ModelError: they cannot be, or more than the usual files would be loaded.
    """
    _refuse_others(checkpoint)
    if checkpoint.revision is None:
        return checkpoint.folder
    return fetch_weights(checkpoint.model_id, checkpoint.revision, checkpoint.trust.pickles)


def weights_bytes(checkpoint: Checkpoint, element_size: int) -> int:
    """About what the weights take in memory, at ``element_size`` bytes a value; reads their files' sizes.

    Raises:
        ModelError: there are none.
    """
    folder, names = _files(checkpoint)
    stored = sum((folder / name).stat().st_size for name in names)
    named = str(checkpoint.text.dtype or checkpoint.config.dtype or "float32")
    stored_size = 4 if "32" in named else 2
    return stored * element_size // stored_size


def identify_weights(
    checkpoint: Checkpoint, wanted: Literal["auto"] | WeightsHash = "auto"
) -> tuple[WeightsHash, str]:
    """The kind of hash, and a SHA-256 over name, dtype, shape and content of every tensor.

    Neither a path, nor a file's name, nor how tensors are spread over files matters. ``sampled`` reads every
    header, small tensors whole, and of larger ones four blocks, the first and the last among them; ``whole``
    reads everything, and ``auto`` does where that is 2 GiB at most. Of pickles, whole files are hashed.
    ``files`` alone depends on files' names: it is a hash over them and whole files.

    Raises:
        ModelError: there are no weights, or a file is damaged.
    """
    folder, names = _files(checkpoint)
    if wanted == "files":
        parts = "".join(f"{name}:{file_sha256(folder / name)}\n" for name in names)
        return wanted, hashlib.sha256(parts.encode()).hexdigest()
    if are_pickled(names):
        return "whole", _combined("pickled", {file_sha256(folder / name): "" for name in names})
    shards = read_shards(folder, names)
    kind = _kind(shards) if wanted == "auto" else wanted
    found: dict[str, str] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        for part in readers.map(lambda shard: _tensor_hashes(shard, kind), shards):
            found |= part
    return kind, _combined(kind, found)


def _refuse_others(checkpoint: Checkpoint) -> None:
    """Transformers loads weights that a config names, and an adapter that it finds, without a word."""
    if (name := getattr(checkpoint.config, "transformers_weights", None)) is not None:
        raise ModelError(
            f"the config of {checkpoint.model_id!r} names weights of its own, transformers_weights {name!r}",
            hint="give them the usual name, model.safetensors, and remove that line",
        )
    if (checkpoint.folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{checkpoint.model_id!r} holds an adapter, adapter_config.json, beside its weights",
            hint="merge it into them, or remove it",
        )


def _files(checkpoint: Checkpoint) -> tuple[Path, list[str]]:
    folder = weights_folder(checkpoint)
    return folder, weight_files(folder, checkpoint.model_id, checkpoint.trust.pickles)


def _kind(shards: list[Shard]) -> WeightsHash:
    size = sum(tensor.size for shard in shards for tensor in shard.tensors.values())
    return "whole" if size <= _SMALL_CHECKPOINT else "sampled"


def _combined(kind: str, parts: dict[str, str]) -> str:
    digest = hashlib.sha256(f"indexcache weights 1, {kind}\n".encode())
    for name, part in sorted(parts.items()):
        digest.update(f"{json.dumps(name)}:{part}\n".encode())
    return digest.hexdigest()


def _tensor_hashes(shard: Shard, kind: WeightsHash) -> dict[str, str]:
    """A hash for each tensor of a file, by name; read in the order in which they stand there."""
    found = {}
    try:
        with shard.path.open("rb", buffering=0) as file:
            for name, tensor in sorted(shard.tensors.items(), key=lambda each: each[1].start):
                digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
                for start, size in _pieces(tensor, kind):
                    file.seek(shard.data + start)
                    digest.update(_exactly(file, size))
                found[name] = digest.hexdigest()
    except OSError as error:
        raise ModelError(f"{str(shard.path)!r} cannot be read: {error.strerror or error}") from error
    return found


def _pieces(tensor: Tensor, kind: WeightsHash) -> Iterator[tuple[int, int]]:
    """Start and size of what is read of a tensor."""
    size = tensor.size
    if kind == "whole" or size <= _SMALL_TENSOR:
        for start in range(tensor.start, tensor.end, _PIECE):
            yield start, min(_PIECE, tensor.end - start)
        return
    for block in range(_BLOCKS):
        yield tensor.start + block * (size - _BLOCK) // (_BLOCKS - 1), _BLOCK


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = file.read(size - len(content))
        if not piece:
            raise OSError(f"it ended {size - len(content)} bytes early")
        content += piece
    return content
