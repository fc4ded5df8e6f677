"""Finds files among the user's and the package's own, and writes a file whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import IndexcacheError, OutputError
from .signals import stops_held

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PACKAGE = Path(__file__).resolve().parents[1]
# A file that is being written: hidden, with the writer's process id, beside the one it becomes.
_UNFINISHED = re.compile(r"^\.(?P<name>.+)\.(?P<pid>\d+)\.part$")
_PROBE = "probe"


def find_path(name: str) -> Path | None:
    """The file or folder ``name``: as the user sees it, else among the package's own; None if neither."""
    if not name.strip():
        return None
    path = home_expanded(name)
    # Of the package, recipes only: a model called "search" is not the folder of that name.
    candidates = [path, _PACKAGE / path] if path.parts[0] == "recipes" else [path]
    return next(filter(is_there, candidates), None)


def refuse_pointer(path: Path, kind: type[IndexcacheError]) -> None:
    """Refuses what Git leaves in the place of a large file that was not fetched; other files may be anything.

    Raises:
        IndexcacheError: of ``kind``: the file is a Git LFS pointer.
    """
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except OSError:  # whoever opens it next says so
        return
    if head == _LFS_POINTER:
        raise kind(f"{str(path)!r} is a Git LFS pointer: run git lfs pull in its folder")


def home_expanded(name: str) -> Path:
    """``name`` with a leading ``~`` replaced, where that is somebody's home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user, or one without a home
        return Path(name)


def is_there(path: Path) -> bool:
    """Whether anything can be seen at ``path``; for names that no file can have, no."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def write_atomically(path: Path, content: bytes | str) -> None:
    """Puts ``content`` at ``path`` in one step: another file beside it is written, synced and renamed.

    A stop by a signal waits until it is done.

    Raises:
        OutputError: the disk is full, the folder read-only, ...; what stood at ``path`` is untouched, but
            where syncing the folder itself failed: then the new file stands there, whole.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with stops_held():
        try:
            make_folder(path.parent)
            unfinished = _write_beside(path, data)
            try:
                os.replace(unfinished, path)  # noqa: PTH105  (tests make each call of os fail in turn)
            except OSError:
                _remove_quietly(unfinished)
                raise
            sync_folder(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error


def check_writable(folder: Path, file: Path | None = None) -> None:
    """Tries to write in ``folder``, so that long work does not end in a folder it cannot write to; leaves nothing.

    Args:
        folder: where to write.
        file: what is to be written there, which an error then names.

    Raises:
        OutputError: it cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with stops_held():
        try:
            make_folder(folder)
            os.unlink(_write_beside(folder / _PROBE, b"?"))  # noqa: PTH108
            for path in missing:  # the innermost first
                with suppress(OSError):  # another search may have put something there meanwhile
                    os.rmdir(path)  # noqa: PTH106
        except OSError as error:
            raise cannot_write(file or folder, error) from error


def remove_unfinished(folder: Path, is_written: Callable[[str], bool]) -> None:
    """Removes what processes that are gone were writing in ``folder`` when they were killed.

    Args:
        folder: where to look.
        is_written: whether this program writes files of that name; files of other programs stay. The file that
            ``check_writable`` tries counts too.
    """
    for path in folder.iterdir():
        match = _UNFINISHED.match(path.name)
        if match and (is_written(match["name"]) or match["name"] == _PROBE) and not _runs(int(match["pid"])):
            _remove_quietly(path)


def make_folder(folder: Path) -> None:
    """Makes ``folder`` and those above it, where they are not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(path)  # noqa: PTH102
            with suppress(PermissionError):  # a folder above that may be written to, and not read
                sync_folder(path.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def write_all(handle: int, data: bytes) -> None:
    """Writes all of ``data``, however little a single call takes."""
    view = memoryview(data)
    while view:
        count = os.write(handle, view)
        if not count:
            raise OSError(errno.EIO, "nothing can be written")
        view = view[count:]


def sync_folder(folder: Path) -> None:
    """Brings the folder's own entries to the disk, so that a rename survives a power loss."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder; there is nothing more to do there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error for a file that cannot be written, with what the system says of it."""
    return OutputError(
        f"{str(path)!r} cannot be written: {error.strerror or error}",
        hint="free the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give another place with --out",
    )


def _write_beside(path: Path, data: bytes) -> Path:
    """Writes and syncs ``data`` into a file of its own beside ``path``; nothing is left of it if that fails."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        _remove_quietly(unfinished)
        raise
    return unfinished


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        os.unlink(path)  # noqa: PTH108


def _runs(pid: int) -> bool:
    """Whether a process with this id runs here; a file of one that runs elsewhere may be removed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return pid != os.getpid()
