"""Whether frozen tokens mean the same to two tokenizers, as a fine-tuned checkpoint's and its base's do."""

from __future__ import annotations

from typing import Any

import numpy as np

from .windows import TokenArray


def differing_id(old: Any, new: Any, rows: TokenArray) -> int | None:
    """The smallest id in ``rows`` that stands for another token in ``new`` than in ``old``; None where none does.

    Tokens that were added and do not occur, or files that are merely written otherwise, make no difference.

    Args:
        old: the tokenizer that made the ids, as transformers loads it.
        new: the other one.
        rows: ids ``[windows, length]``.
    """
    ids = np.unique(rows).tolist()
    pairs = zip(ids, old.convert_ids_to_tokens(ids), new.convert_ids_to_tokens(ids), strict=True)
    return next((token_id for token_id, before, after in pairs if before != after), None)
