"""Writes windows to a safetensors file and reads them back, identified by the SHA-256 of their ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import DatasetError, IdentityError, first_line
from ..evaluate import CALIBRATION, HELD_OUT
from ..system.documents import read_bytes
from .windows import Windows

_LARGEST_FILE = 8 << 30
_NAMES = (CALIBRATION, HELD_OUT, f"{CALIBRATION}_documents", f"{HELD_OUT}_documents")


def token_sha256(windows: Windows) -> str:
    """SHA-256 over both groups: name, shape and little-endian int32 of their ids and documents."""
    digest = hashlib.sha256()
    for name in (CALIBRATION, HELD_OUT):
        for array in (windows.group(name), np.asarray(windows.documents(name))):
            # The shape too: the same ids in windows of another length are other windows.
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
    return digest.hexdigest()


def frozen_bytes(windows: Windows) -> bytes:
    """The safetensors file that holds ``windows``."""
    arrays = (windows.calibration, windows.heldout, windows.calibration_documents, windows.heldout_documents)
    return bytes(save({name: np.ascontiguousarray(array) for name, array in zip(_NAMES, arrays, strict=True)}))


def thaw(path: Path, sha256: str | None = None) -> Windows:
    """Reads frozen windows; with ``sha256``, only those.

    Raises:
        DatasetError: no such file, or no frozen tokens.
        IdentityError: the tokens are not the ones asked for.
    """
    try:
        arrays = load(read_bytes(path, DatasetError, _LARGEST_FILE))
        windows = Windows(*(arrays.pop(name) for name in _NAMES))
    except FileNotFoundError:
        raise DatasetError(
            f"the frozen tokens {str(path)!r} are missing", hint="keep them beside the plan, or search again"
        ) from None
    except (KeyError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{str(path)!r} does not hold frozen tokens: {first_line(error)}") from error
    if arrays or not _well_formed(windows):
        raise DatasetError(f"{str(path)!r} does not hold frozen tokens: expected int32 rows and documents")
    if sha256 is not None and (digest := token_sha256(windows)) != sha256:
        raise IdentityError(
            f"the tokens in {str(path)!r} are not the plan's: sha256 {digest[:12]}, the plan has {sha256[:12]}",
            hint="each plan keeps its own windows.safetensors beside it",
        )
    return windows


def _well_formed(windows: Windows) -> bool:
    """Rows of non-negative int32 ids, of one length in both groups, with a document each."""
    pairs = [(windows.calibration, windows.calibration_documents), (windows.heldout, windows.heldout_documents)]
    if any(ids.ndim != 2 or documents.shape != ids.shape[:1] for ids, documents in pairs):
        return False
    arrays = [array for pair in pairs for array in pair]
    return (
        all(array.dtype == np.int32 and array.min(initial=0) >= 0 for array in arrays)
        and windows.calibration.shape[1] == windows.heldout.shape[1] >= 2
    )
