"""A checkpoint's weights before they are loaded: their folder, their size, and what identifies them by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from ....errors import ModelError
from ..config import Checkpoint, file_sha256
from ..hub import fetch_weights
from .shards import Shard, Tensor, are_pickled, check_index, read_shards, weight_files

# "files" is how plans of schema version 1 identify weights; no new plan does.
WeightsHash: TypeAlias = Literal["sampled", "whole", "files"]

# The text model's layers, not those of towers beside it.
_DECODER_LAYER = re.compile(r"(?:(?:model|language_model|text_model)\.)*layers\.(\d+)\.")
_SMALL_TENSOR = 64 << 10
_BLOCKS, _BLOCK = 4, 4 << 10
_PIECE = 1 << 24
# Whole up to here: seconds at most, and in small models a change can be small.
_SMALL_CHECKPOINT = 2 << 30
# Blocks are fetched one by one, so that a disk or network would mostly wait; hashing frees the interpreter.
_READERS = 8


@dataclass(frozen=True)
class StoredWeights:
    """A checkpoint's weights as they lie on disk; looked for once, then handed to all that need them.

    Args:
        folder: where the files are.
        files: their names.
        shards: the headers of safetensors files, in the order of ``files``; of pickles there are none.
        pickled: whether the files are pickles.
    """

    folder: Path
    files: tuple[str, ...]
    shards: tuple[Shard, ...]
    pickled: bool

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def sweep_bytes(self, layers: int) -> int:
        """Bytes that a sweep reads: the decoder's ``layers`` layers as stored; of pickles, whole files."""
        if self.pickled:
            return self.size
        tensors = [entry for shard in self.shards for entry in shard.tensors.items()]
        numbered = [(_DECODER_LAYER.match(name), tensor.size) for name, tensor in tensors]
        # Layers behind the decoder's predict further tokens.
        return sum(size for layer, size in numbered if layer is not None and int(layer[1]) < layers)


def find_weights(checkpoint: Checkpoint) -> StoredWeights:
    """The weights of ``checkpoint``, with their headers read; they are downloaded if they are on the hub.

    Raises:
        ModelError: there are none, one is damaged or of another checkpoint, or transformers would load more than
            the usual files.
    """
    _refuse_others(checkpoint)
    folder = checkpoint.folder
    if checkpoint.revision is not None:
        folder = fetch_weights(checkpoint.model_id, checkpoint.revision, checkpoint.trust.pickles)
    files = weight_files(folder, checkpoint.model_id, checkpoint.trust.pickles)
    pickled = are_pickled(files)
    shards = () if pickled else tuple(read_shards(folder, files))
    check_index(folder, shards, checkpoint.model_id)
    return StoredWeights(folder, tuple(files), shards, pickled)


def identify_weights(
    weights: StoredWeights, kind: Literal["auto"] | WeightsHash = "auto"
) -> tuple[WeightsHash, str]:
    """The kind of hash, and a SHA-256 over name, dtype, shape and content of every tensor.

    Neither a path, nor a file's name, nor how tensors are spread over files matters. ``sampled`` reads every
    header, small tensors whole, and of larger ones four blocks, the first and the last among them; ``whole``
    reads everything, and ``auto`` does where that is 2 GiB at most. Of pickles, whole files are hashed.
    ``files`` alone depends on files' names: it is a hash over them and whole files.

    Raises:
        ModelError: a file cannot be read.
    """
    if kind == "files":
        parts = "".join(f"{name}:{file_sha256(weights.folder / name)}\n" for name in weights.files)
        return kind, hashlib.sha256(parts.encode()).hexdigest()
    if weights.pickled:
        file_hashes = {file_sha256(weights.folder / name): "" for name in weights.files}
        return "whole", _combined("pickled", file_hashes)
    depth = _depth(weights.shards) if kind == "auto" else kind
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        for shard_hashes in readers.map(lambda shard: _tensor_hashes(shard, depth), weights.shards):
            hashes |= shard_hashes
    return depth, _combined(depth, hashes)


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


def _depth(shards: Sequence[Shard]) -> WeightsHash:
    size = sum(tensor.size for shard in shards for tensor in shard.tensors.values())
    return "whole" if size <= _SMALL_CHECKPOINT else "sampled"


def _combined(kind: str, hashes: dict[str, str]) -> str:
    """One hash of all, in the order of their names, so that it does not depend on files or threads."""
    digest = hashlib.sha256(f"indexcache weights 1, {kind}\n".encode())
    for name, tensor_hash in sorted(hashes.items()):
        digest.update(f"{json.dumps(name)}:{tensor_hash}\n".encode())
    return digest.hexdigest()


def _tensor_hashes(shard: Shard, kind: WeightsHash) -> dict[str, str]:
    """A hash for each tensor of a file, by name; read in the order in which they stand there."""
    hashes = {}
    try:
        with shard.path.open("rb", buffering=0) as file:
            for name, tensor in sorted(shard.tensors.items(), key=lambda entry: entry[1].start):
                digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
                for start, size in _pieces(tensor, kind):
                    file.seek(shard.data + start)
                    digest.update(_exactly(file, size))
                hashes[name] = digest.hexdigest()
    except OSError as error:
        raise ModelError(f"{str(shard.path)!r} cannot be read: {error.strerror or error}") from error
    return hashes


def _pieces(tensor: Tensor, kind: WeightsHash) -> Iterator[tuple[int, int]]:
    """Start and size of what is read of a tensor."""
    size = tensor.size
    if kind == "whole" or size <= _SMALL_TENSOR:
        for start in range(tensor.start, tensor.end, _PIECE):
            yield start, min(_PIECE, tensor.end - start)
        return
    # Evenly spread: the first block begins where the tensor does, the last ends where it ends.
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
