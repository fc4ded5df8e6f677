"""Writes a checkpoint again without the indexer weights of some layers, byte for byte otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import ModelError
from .stored.copies import check_place, copy_other_files, finished_at_once, pieces, write
from .stored.shards import INDEX, WHOLE, Shard, read_shards, weight_files

# The decoder's own layers; a multi-token-prediction layer has another prefix or an id beyond them.
_INDEXER = re.compile(r"(?:(?:model|language_model|text_model)\.)*layers\.(\d+)\.(?:.+\.)?indexer\..+")


@dataclass(frozen=True)
class StrippedWeights:
    """What was left out: how many tensors, and their bytes and numbers."""

    tensors: int
    size: int
    parameters: int


def strip_indexers(
    source: Path,
    target: Path,
    required: Collection[int],
    optional: Collection[int],
    config: bytes,
    on_shard: Callable[[str], None] = lambda name: None,
    left_behind: Collection[str] = (),
) -> StrippedWeights:
    """Writes the checkpoint in ``source`` to ``target``, without the indexer weights of some decoder layers.

    Shard after shard is copied in pieces, so that memory does not matter, under another name that becomes
    ``target`` when all is there. Weights that the checkpoint's index does not name are left behind.

    Args:
        source: a local folder with safetensors weights.
        target: a folder that does not exist, or is empty.
        required: layers whose indexer weights have to be there.
        optional: layers whose indexer weights go too, if they are there.
        config: the content of the new config.json.
        on_shard: called with the name of each file before it is written.
        left_behind: names of files of ``source`` itself that are no part of the checkpoint.

    Raises:
        ModelError: the weights cannot be read, or a required layer has no indexer weights.
        OutputError: the folder cannot be written, or is in use; nothing is left of it.
    """
    shards = read_shards(source, weight_files(source, str(source)))
    omissions = _indexer_tensors(shards, required, optional)
    check_place(source, target, _size(shards, omissions))
    with finished_at_once(target) as unfinished:
        copy_other_files(source, unfinished, without=("config.json", INDEX, *left_behind))
        for shard in shards:
            on_shard(shard.path.name)
            _write_shard(shard, omissions, unfinished / shard.path.name)
        result = _result(shards, omissions)
        _write_index(source, unfinished, omissions, result)
        write(unfinished / "config.json", iter([config]))
    return result


def _indexer_tensors(shards: list[Shard], required: Collection[int], optional: Collection[int]) -> set[str]:
    omissions: set[str] = set()
    layers: set[int] = set()
    for shard in shards:
        for name in shard.tensors:
            match = _INDEXER.fullmatch(name)
            if match and int(match[1]) in {*required, *optional}:
                omissions.add(name)
                layers.add(int(match[1]))
    if missing := sorted(set(required) - layers):
        raise ModelError(
            f"the checkpoint holds no indexer weights of layer {missing[0]}",
            hint="it was stripped already, or names its weights in another way",
        )
    return omissions


def _size(shards: list[Shard], omissions: set[str]) -> int:
    """Bytes of the tensors that stay."""
    return sum(shard.tensors[name].size for shard in shards for name in shard.tensors if name not in omissions)


def _write_shard(shard: Shard, omissions: set[str], path: Path) -> None:
    """The shard without the tensors ``omissions``; no file where none would be left."""
    names = sorted(
        (name for name in shard.tensors if name not in omissions),
        key=lambda name: (shard.tensors[name].start, shard.tensors[name].end),
    )
    if not names:
        return
    header: dict[str, Any] = {"__metadata__": shard.metadata} if shard.metadata is not None else {}
    end = 0
    for name in names:
        tensor = shard.tensors[name]
        first, end = end, end + tensor.size
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [first, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # data begins at a multiple of 8 bytes, as safetensors writes it
    with shard.path.open("rb") as file:
        write(path, _shard_content(shard, names, encoded, file))


def _shard_content(shard: Shard, names: list[str], header: bytes, file: BinaryIO) -> Iterator[bytes]:
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        yield from pieces(file, shard.data + shard.tensors[name].start, shard.tensors[name].size)


def _result(shards: list[Shard], omissions: set[str]) -> StrippedWeights:
    tensors = [shard.tensors[name] for shard in shards for name in omissions & shard.tensors.keys()]
    size, parameters = sum(tensor.size for tensor in tensors), sum(tensor.numbers for tensor in tensors)
    return StrippedWeights(len(omissions), size, parameters)


def _write_index(source: Path, folder: Path, omissions: set[str], result: StrippedWeights) -> None:
    # A whole file goes before an index beside it, which then says nothing of what was read.
    if not (source / INDEX).is_file() or (source / WHOLE).is_file():
        return
    index = json.loads((source / INDEX).read_bytes())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if name not in omissions}
    totals = index.get("metadata")
    if isinstance(totals, dict):
        for name, less in (("total_size", result.size), ("total_parameters", result.parameters)):
            if isinstance(totals.get(name), int):
                totals[name] -= less
    write(folder / INDEX, iter([json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"]))
