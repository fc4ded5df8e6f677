"""Whether frozen tokens are a tokenizer's own: their text, written again, has the same ids."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from .windows import TokenArray

_TRIED_WINDOWS, _TRIED_TOKENS = 4, 512
# A window may begin within a character, and a few pieces be joined otherwise; another tokenizer keeps far fewer.
_LEAST_SHARE = 0.9


def is_of_tokenizer(tokenizer: Any, windows: Iterable[TokenArray]) -> bool:
    """Whether ``tokenizer`` reads token ids as text that it would write with nearly the same ids.

    Tokenizers whose ids are renamed throughout, such as shifted characters, would pass: the loss shows those.

    Args:
        tokenizer: as transformers loads it.
        windows: ids ``[length]``; the beginnings of the first few are tried.
    """
    matched = total = 0
    for window in list(windows)[:_TRIED_WINDOWS]:
        ids = window[:_TRIED_TOKENS].tolist()
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        again = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        blocks = SequenceMatcher(None, ids, again, autojunk=False).get_matching_blocks()
        matched += sum(block.size for block in blocks)
        total += len(ids)
    return total > 0 and matched >= _LEAST_SHARE * total
