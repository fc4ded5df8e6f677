"""The type that a checkpoint is computed in: the one asked for, or the one that its config names."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import ModelError, SettingError
from .config import Checkpoint

DTYPES = ("auto", "float32", "bfloat16", "float16")


def compute_dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """The torch dtype that ``dtype`` means for this checkpoint.

    Raises:
        SettingError: not one of ``DTYPES``.
        ModelError: it is ``auto``, and the config names one that torch does not have.
    """
    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype!r}", hint=f"give one of {', '.join(DTYPES)}")
    torch_dtype = config_dtype(checkpoint) if dtype == "auto" else getattr(torch, dtype)
    if not isinstance(torch_dtype, torch.dtype):
        name = _config_entry(checkpoint)
        raise ModelError(f"the config of {checkpoint.model_id!r} names a dtype {name!r}", hint="give --dtype")
    return torch_dtype


def config_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The type that the config names; fp32 where it names none, None where torch does not have it."""
    entry = _config_entry(checkpoint)
    torch_dtype = getattr(torch, entry, None) if isinstance(entry, str) else entry or torch.float32
    return torch_dtype if isinstance(torch_dtype, torch.dtype) else None


def _config_entry(checkpoint: Checkpoint) -> Any:
    return checkpoint.text.dtype or checkpoint.config.dtype


def dtype_name(dtype: Any) -> str:
    """``bfloat16`` for ``torch.bfloat16``; a name stays as it is."""
    return str(dtype).removeprefix("torch.")
