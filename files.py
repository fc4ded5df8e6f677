"""Finds files among the user's and the package's own, and writes a file whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from .errors import OutputError

_PACKAGE = Path(__file__).resolve().parent


def find_path(name: str) -> Path | None:
    """The file or folder ``name``: as the user sees it, else among the package's own; None if neither."""
    if not name.strip():
        return None
    path = home_expanded(name)
    # Of the package, recipes only: a model called "search" is not the folder of that name.
    own = [_PACKAGE / path] if path.parts[0] == "recipes" else []
    return next((each for each in (path, *own) if is_there(each)), None)


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

    Raises:
        OutputError: the disk is full, the folder read-only, ...; what stood at ``path`` is untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a plan is for everyone the umask lets read.
        umask = os.umask(0)
        os.umask(umask)
        Path(unfinished).chmod(0o666 & ~umask)
        Path(unfinished).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if unfinished is not None:
            with suppress(OSError):
                Path(unfinished).unlink(missing_ok=True)
        raise OutputError(
            f"{str(path)!r} cannot be written: {error.strerror or error}",
            hint="give another place with --out" if error.errno != errno.ENOSPC else "free the disk",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
