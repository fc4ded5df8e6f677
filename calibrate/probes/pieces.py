"""Encodes the pieces of a probe one by one, so that each token's place is known whatever the tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..windows import TokenArray, text_opening

# What a piece is encoded behind: a tokenizer of the SentencePiece kind puts a space before a text, but not here.
# The next one is tried where a tokenizer joins it with the piece.
_ANCHORS = ("\n", ":", "a")
_CLAUSE_ENDS = (".", "!", "?", ";", ":", ",")


class Encoder:
    """A tokenizer as probes use it: pieces to ids, remembered, and where ids end a line or clause.

    Args:
        tokenizer: one of transformers; called without special tokens, and its ``decode``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.opening: tuple[int, ...] = tuple(text_opening(tokenizer))
        """What stands before every text: BOS, ``[gMASK]<sop>``, or nothing."""
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._texts: dict[int, str] = {}
        self._anchors = [(anchor, ids) for anchor in _ANCHORS if (ids := self.text(anchor))]

    def text(self, text: str) -> list[int]:
        """The ids of a text by itself, without what the tokenizer adds."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def piece(self, text: str) -> tuple[int, ...]:
        """The ids of a text as it stands behind others; the same text always has the same ids."""
        if text not in self._pieces:
            self._pieces[text] = tuple(self._behind(text))
        return self._pieces[text]

    def decode(self, ids: TokenArray) -> str:
        """The text of some ids."""
        return str(self._tokenizer.decode(ids.tolist()))

    def ends(self, ids: TokenArray) -> TokenArray:
        """The positions in ``ids`` before which a line or a clause ends, ascending."""
        distinct, places = np.unique(ids, return_inverse=True)
        texts = [self._text(token) for token in distinct.tolist()]
        flags = np.array(
            [text.endswith("\n") or text.rstrip(" ").endswith(_CLAUSE_ENDS) for text in texts], dtype=bool
        )
        return (np.flatnonzero(flags[places]) + 1).astype(np.int32)

    def is_blank(self, token: int) -> bool:
        """Whether a token is white space alone."""
        return not self._text(token).strip()

    def _behind(self, text: str) -> list[int]:
        for anchor, opening in self._anchors:
            ids = self.text(anchor + text)
            if ids[: len(opening)] == opening and len(ids) > len(opening):
                return ids[len(opening) :]
        return self.text(text)

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.decode([token]))
        return self._texts[token]
