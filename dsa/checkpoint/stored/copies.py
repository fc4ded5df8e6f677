"""What copies of a checkpoint need: a place that fits, the files that go with weights, pieces on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ....errors import OutputError

_PIECE = 1 << 24
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def check_place(source: Path, target: Path, needed: int) -> None:
    """Refuses a folder in use, and a disk that is too small, before anything is written.

    Args:
        source: the checkpoint.
        target: where the copy is to be.
        needed: bytes that it takes.

    Raises:
        OutputError: says how many bytes are needed, and how many are there.
    """
    if target.resolve() == source.resolve():
        raise OutputError(f"{str(target)!r} is the checkpoint itself", hint="give another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{str(target)!r} is there already and not empty", hint="give another folder")
    free = shutil.disk_usage(existing_folder(target)).free
    if needed > free:
        raise OutputError(
            f"{str(target)!r} needs {needed / 2**30:.1f} GiB, but the disk has {free / 2**30:.1f} GiB left",
            hint="give a folder on another disk",
        )


def existing_folder(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


@contextmanager
def finished_at_once(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to write in, which gets that name at the end; nothing is left of a failure.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.unfinished-"))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield unfinished
        _share_mode(unfinished)
        # The folder gets its name last: whoever finds it finds all of it.
        unfinished.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_other_files(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copies what goes with the weights: tokenizer, code, templates; nothing hidden, and no weights.

    Args:
        source: the checkpoint.
        target: the copy.
        without: names of files of ``source`` itself that stay behind.
    """
    for path in _other_files(source):
        if path.parent == source and path.name in without:
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def pieces(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """The ``size`` bytes of ``file`` from ``start`` on, a piece at a time, so that memory does not matter.

    Raises:
        OSError: the file ends before.
    """
    file.seek(start)
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise OSError(f"{Path(file.name).name} ended while it was read")
        size -= len(piece)
        yield piece


def write(path: Path, content: Iterator[bytes]) -> None:
    """Writes ``content`` to ``path`` and brings it to the disk."""
    with path.open("wb") as file:
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _other_files(source: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "__pycache__")
        for name in sorted(files):
            if not name.startswith(".") and not name.endswith(_WEIGHTS):
                yield Path(folder, name)


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{str(target)!r} cannot be written: {error.strerror or error}", hint="nothing was left there"
    )


def _share_mode(folder: Path) -> None:
    """mkdtemp makes folders private; a checkpoint is for everyone the umask lets read."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
