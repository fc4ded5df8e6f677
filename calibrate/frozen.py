"""Writes windows to a safetensors file and reads them back, identified by the SHA-256 of their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import DatasetError, IdentityError, first_line
from ..evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT
from ..system.documents import read_bytes
from .windows import WindowGroup, Windows

_LARGEST_FILE = 8 << 30
_ALWAYS = (CALIBRATION, HELD_OUT)


def token_sha256(windows: Windows) -> str:
    """SHA-256 over all groups: name, shape and little-endian int32 of their ids and documents, and of answers."""
    digest = hashlib.sha256()
    for name, group in windows.groups.items():
        answers = () if group.answers is None else (group.answers,)
        for array in (group.ids, group.documents, *answers):
            # The shape too: the same ids in windows of another length are other windows.
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        digest.update(",".join(group.kinds).encode())
    return digest.hexdigest()


def frozen_bytes(windows: Windows) -> bytes:
    """The safetensors file that holds ``windows``."""
    arrays: dict[str, Any] = {}
    for name, group in windows.groups.items():
        arrays |= {name: group.ids, f"{name}_documents": group.documents}
        if group.answers is not None:
            arrays |= {f"{name}_answers": group.answers, f"{name}_kinds": _as_array(group.kinds)}
    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _as_array(kinds: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Names as bytes, a line each: safetensors holds numbers only."""
    return np.frombuffer("\n".join(kinds).encode(), dtype=np.uint8)


def _group(arrays: dict[str, Any], name: str) -> WindowGroup:
    ids, documents = arrays.pop(name), arrays.pop(f"{name}_documents")
    answers = arrays.pop(f"{name}_answers", None)
    kinds = bytes(arrays.pop(f"{name}_kinds")).decode().split("\n") if answers is not None else ()
    return WindowGroup(ids, documents, answers, tuple(kinds))


def thaw(path: Path, sha256: str | None = None) -> Windows:
    """Reads frozen windows; with ``sha256``, only those.

    Raises:
        DatasetError: no such file, or no frozen tokens.
        IdentityError: the tokens are not the ones asked for.
    """
    try:
        arrays = load(read_bytes(path, DatasetError, _LARGEST_FILE))
        names = [name for name in GROUP_TITLES if name in _ALWAYS or name in arrays]
        windows = Windows({name: _group(arrays, name) for name in names})
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
    """Rows of non-negative int32 ids, of one length in all groups, with a document each; answers in each probe."""
    length = windows.calibration.shape[-1]
    return length >= 2 and all(_is_group(group, length) for group in windows.groups.values())


def _is_group(group: WindowGroup, length: int) -> bool:
    ids, documents, answers = group.ids, group.documents, group.answers
    if ids.ndim != 2 or ids.shape[1] != length or documents.shape != ids.shape[:1]:
        return False
    if any(array.dtype != np.int32 or array.min(initial=0) < 0 for array in (ids, documents)):
        return False
    if answers is None:
        return True
    shaped = answers.dtype == np.bool_ and answers.shape == (len(ids), length - 1)
    return shaped and len(group.kinds) == len(ids) and bool(answers.any(axis=1).all())
