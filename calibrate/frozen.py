"""Writes windows to a safetensors file and reads them back, identified by the SHA-256 of their ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..errors import DatasetError, IdentityError
from .windows import CALIBRATION, HELD_OUT, Windows


def token_sha256(windows: Windows) -> str:
    """SHA-256 over both groups: name, shape and little-endian int32 ids."""
    digest = hashlib.sha256()
    for name in (CALIBRATION, HELD_OUT):
        ids = np.ascontiguousarray(windows.group(name), dtype="<i4")
        digest.update(f"{name}{ids.shape}".encode())
        digest.update(ids.tobytes())
    return digest.hexdigest()


def frozen_bytes(windows: Windows) -> bytes:
    """The safetensors file that holds ``windows``."""
    return bytes(save({name: np.ascontiguousarray(windows.group(name)) for name in (CALIBRATION, HELD_OUT)}))


def thaw(path: Path, sha256: str | None = None) -> Windows:
    """Reads frozen windows; with ``sha256``, only those.

    Raises:
        DatasetError: no such file, or not one of ours.
        IdentityError: the tokens are not the ones asked for.
    """
    try:
        arrays = load_file(path)
        windows = Windows(calibration=arrays[CALIBRATION], heldout=arrays[HELD_OUT])
    except FileNotFoundError:
        raise DatasetError(
            f"the frozen tokens {str(path)!r} are missing", hint="keep them beside the plan, or search again"
        ) from None
    except (OSError, KeyError, SafetensorError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} does not hold frozen tokens: {error}") from error
    for ids in (windows.calibration, windows.heldout):
        if ids.ndim != 2 or ids.dtype != np.int32:
            raise DatasetError(f"{str(path)!r} does not hold frozen tokens: expected int32 rows")
    if sha256 is not None and (found := token_sha256(windows)) != sha256:
        raise IdentityError(
            f"the tokens in {str(path)!r} are not the plan's: sha256 {found[:12]}, the plan has {sha256[:12]}",
            hint="each plan keeps its own windows.safetensors beside it",
        )
    return windows
