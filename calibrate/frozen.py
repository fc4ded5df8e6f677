"""Writes windows to a safetensors file and reads them back, identified by the SHA-256 of their ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..errors import DatasetError, IdentityError
from ..groups import CALIBRATION, HELD_OUT
from .windows import Windows


def token_sha256(windows: Windows) -> str:
    """SHA-256 over both groups: name, shape and little-endian int32 of their ids and documents."""
    digest = hashlib.sha256()
    for name in (CALIBRATION, HELD_OUT):
        for array in (windows.group(name), np.asarray(windows.documents(name))):
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
    return digest.hexdigest()


def frozen_bytes(windows: Windows) -> bytes:
    """The safetensors file that holds ``windows``."""
    arrays = {
        CALIBRATION: windows.calibration,
        HELD_OUT: windows.heldout,
        f"{CALIBRATION}_documents": windows.calibration_documents,
        f"{HELD_OUT}_documents": windows.heldout_documents,
    }
    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def thaw(path: Path, sha256: str | None = None) -> Windows:
    """Reads frozen windows; with ``sha256``, only those.

    Raises:
        DatasetError: no such file, or not one of ours.
        IdentityError: the tokens are not the ones asked for.
    """
    try:
        arrays = load_file(path)
        windows = Windows(
            arrays[CALIBRATION],
            arrays[HELD_OUT],
            arrays[f"{CALIBRATION}_documents"],
            arrays[f"{HELD_OUT}_documents"],
        )
    except FileNotFoundError:
        raise DatasetError(
            f"the frozen tokens {str(path)!r} are missing", hint="keep them beside the plan, or search again"
        ) from None
    except (OSError, KeyError, SafetensorError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} does not hold frozen tokens: {error}") from error
    for name in (CALIBRATION, HELD_OUT):
        ids = windows.group(name)
        if ids.ndim != 2 or ids.dtype != np.int32 or len(windows.documents(name)) != len(ids):
            raise DatasetError(f"{str(path)!r} does not hold frozen tokens: expected int32 rows and documents")
    if sha256 is not None and (found := token_sha256(windows)) != sha256:
        raise IdentityError(
            f"the tokens in {str(path)!r} are not the plan's: sha256 {found[:12]}, the plan has {sha256[:12]}",
            hint="each plan keeps its own windows.safetensors beside it",
        )
    return windows
