"""One writer a run's folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError
from .files import cannot_write, make_folder, write_all

LOCK_FILE = ".lock"
# What file systems without locks say, NFS without its lock service among them.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def locked(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of ``folder``, which is made if need be; goes on, with a warning, where there are no locks.

    The system drops a lock when its process dies, so that a killed one's is free at once.

    Raises:
        BusyError: another process holds it; says which, if that is known.
        OutputError: nothing can be written there.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        make_folder(folder)
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"{str(folder)!r} is being written by another search{_owner(path)}",
            hint="wait for it, or give another --out",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(folder, error) from error
        warn(f"the file system of {str(folder)!r} has no locks: see that no other search writes there")
    try:
        if lock.is_locked:
            _sign(path)
        yield
    finally:
        # The file stays: removing it could take the lock from somebody who has just opened it.
        with suppress(OSError):
            lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of ``folder``; it is taken for a moment where nobody does.

    Where there are no locks, or the lock may not be opened, nobody is said to hold it.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        if not path.is_file():  # looking is to leave nothing behind
            return False
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def _sign(path: Path) -> None:
    """Writes into the lock's file which process holds it: for people to read, nothing depends on it."""
    with suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            write_all(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        finally:
            os.close(handle)


def _owner(path: Path) -> str:
    try:
        pid, host = path.read_text("utf-8").split()
        return f", process {int(pid)} on {host[:100]}"
    except (OSError, ValueError):
        return ""
