"""Leaves out documents that windows of a search were cut from, told by the passages that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .windows import WindowGroup, text_opening

# Tokens: longer than what other texts have by chance, short enough that a window's end cuts few documents apart.
PASSAGE = 24
# Documents from which on a passage is a form, as a chat template's opening is, and tells nothing of any of them.
_FORM = 3
# Odd, so that no bit is lost; the hash only finds candidates.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_Ids = npt.NDArray[np.int32]
_Hashes = npt.NDArray[np.uint64]


class SeenText:
    """The text of windows, cut into passages of ``PASSAGE`` tokens one after the other.

    A document that has ``2 * PASSAGE - 1`` tokens in a row in a window holds one of them, wherever the window
    was cut. A shorter document is known where it stands in a window whole.

    Args:
        groups: windows that documents are held against.
        opening: what the tokenizer puts before every text.
        end: the end-of-text token, which stands between short documents; None where there is none.
    """

    def __init__(self, groups: Iterable[WindowGroup], opening: Sequence[int], end: int | None) -> None:
        windows = [
            (_without(ids, opening), int(document))
            for group in groups
            for ids, document in zip(group.ids, group.documents, strict=True)
        ]
        self._whole = {piece.tobytes() for ids, _ in windows for piece in _between(ids, end)}
        self._passages = {
            ids[start : start + PASSAGE].tobytes()
            for ids, _ in windows
            for start in range(0, len(ids) - PASSAGE + 1, PASSAGE)
        }
        self._hashes = _known_hashes(self._passages)
        documents: dict[bytes, set[int]] = {}
        for ids, document in windows:
            for passage in self._passages_in(ids):
                documents.setdefault(passage, set()).add(document)
        self._passages -= {passage for passage, numbers in documents.items() if len(numbers) >= _FORM}

    def __contains__(self, ids: _Ids) -> bool:
        """Whether a document, as token ids ``[tokens]`` without special ones, shares a passage with a window."""
        return ids.tobytes() in self._whole or bool(self._passages_in(ids))

    def _passages_in(self, ids: _Ids) -> set[bytes]:
        """The passages that stand in ``ids``, at any place."""
        hashes = _hashes(ids)
        if not len(self._hashes) or not len(hashes):
            return set()
        nearest = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        starts = np.flatnonzero(self._hashes[nearest] == hashes).tolist()
        return {ids[start : start + PASSAGE].tobytes() for start in starts} & self._passages


class UnseenDocuments:
    """The documents of a stream but those that are seen text; counts these.

    ``left_out`` is how many were left out so far, and ``ended`` says whether the stream came to its end.

    Args:
        documents: the stream.
        tokenizer: as for the windows.
        groups: windows whose documents are left out.
    """

    def __init__(self, documents: Iterable[str], tokenizer: Any, groups: Iterable[WindowGroup]) -> None:
        self._documents, self._tokenizer = documents, tokenizer
        self._seen = SeenText(groups, text_opening(tokenizer), tokenizer.eos_token_id)
        self.left_out, self.ended = 0, False

    def __iter__(self) -> Iterator[str]:
        self.left_out, self.ended = 0, False
        for text in self._documents:
            ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if np.asarray(ids, dtype=np.int32) in self._seen:
                self.left_out += 1
            else:
                yield text
        self.ended = True


def _without(ids: _Ids, opening: Sequence[int]) -> _Ids:
    """A window's ids without what the tokenizer puts before every text."""
    return ids[len(opening) :] if ids[: len(opening)].tolist() == list(opening) else ids


def _between(ids: _Ids, end: int | None) -> list[_Ids]:
    """What of a window stands between its start or an end of text and another one: whole short documents."""
    if end is None:
        return []
    *pieces, _ = np.split(ids, np.flatnonzero(ids == end) + 1)
    return [piece[:-1] for piece in pieces if len(piece) > 1]


def _hashes(ids: _Ids) -> _Hashes:
    """A hash of the passage at each place of ``ids``: ``sum of id[i] * m^(PASSAGE - 1 - i)`` modulo 2^64."""
    count = max(0, len(ids) - PASSAGE + 1)
    hashes, numbers = np.zeros(count, dtype=np.uint64), ids.astype(np.uint64)
    for offset in range(PASSAGE):
        hashes = hashes * _MULTIPLIER + numbers[offset : offset + count]
    return hashes


def _known_hashes(passages: Iterable[bytes]) -> _Hashes:
    """Those of the passages, ascending."""
    hashes = [_hashes(np.frombuffer(passage, dtype=np.int32)) for passage in passages]
    return np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, dtype=np.uint64)
