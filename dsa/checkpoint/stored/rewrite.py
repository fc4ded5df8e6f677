"""Writes a checkpoint again with other bytes in some of its tensors, and every other byte as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ....errors import ModelError
from .copies import copy_other_files, existing_folder, pieces, write
from .shards import Shard


def bytes_needed(shards: Sequence[Shard], names: Collection[str], target: Path) -> int:
    """Bytes that a copy at ``target`` takes in which the tensors ``names`` change, as far as shards go.

    A shard without one of them is linked where the disk is the same, and then takes none.

    Args:
        shards: of the checkpoint.
        names: of the tensors that change.
        target: where the copy is to be.
    """
    device, needed = existing_folder(target).stat().st_dev, 0
    for shard in shards:
        held = shard.path.stat()
        if held.st_dev != device or not shard.tensors.keys().isdisjoint(names):
            needed += held.st_size
    return needed


def rewrite(
    source: Path,
    shards: Sequence[Shard],
    contents: Mapping[str, bytes],
    target: Path,
    on_shard: Callable[[str], None] = lambda name: None,
    left_behind: Collection[str] = (),
) -> None:
    """Writes the checkpoint in ``source`` to ``target``, with ``contents`` in the place of some tensors.

    Headers, and so the types, shapes and order of all tensors, stay as they are. A shard in which nothing changes
    is the same file under a second name where the disk is the same, else a copy.

    Args:
        source: a local folder with safetensors weights.
        shards: of it.
        contents: by tensor, as many bytes as it has.
        target: an empty folder.
        on_shard: called with the name of each file before it is written.
        left_behind: names of files of ``source`` itself that are no part of the checkpoint.

    Raises:
        ModelError: a tensor is not there, or has another size.
        OSError: something cannot be read or written.
    """
    _check(shards, contents)
    copy_other_files(source, target, left_behind)
    for shard in shards:
        on_shard(shard.path.name)
        path = target / shard.path.name
        if contents.keys().isdisjoint(shard.tensors):
            _link(shard.path, path)
        else:
            _write(shard, contents, path)


def _check(shards: Sequence[Shard], contents: Mapping[str, bytes]) -> None:
    sizes = {name: tensor.size for shard in shards for name, tensor in shard.tensors.items()}
    for name, content in contents.items():
        if len(content) != sizes.get(name):
            raise ModelError(
                f"tensor {name} has {sizes.get(name, 'no')} bytes in the checkpoint, not {len(content)}"
            )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _write(shard: Shard, contents: Mapping[str, bytes], path: Path) -> None:
    with shard.path.open("rb") as file:
        write(path, pieces(file, 0, shard.path.stat().st_size))
    with path.open("r+b") as copy:
        for name in contents.keys() & shard.tensors.keys():
            copy.seek(shard.data + shard.tensors[name].start)
            copy.write(contents[name])
        copy.flush()
        os.fsync(copy.fileno())
