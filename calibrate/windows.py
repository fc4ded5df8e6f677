"""Packs documents into fixed-length windows, calibration and held-out kept apart by document."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, WindowError

TokenArray = npt.NDArray[np.int32]

# No document fills more than this share of a group while there are others to take from.
_SHARE_OF_ONE_DOCUMENT = 1 / 8
CALIBRATION = "calibration"
HELD_OUT = "heldout"
_SPOKEN = {CALIBRATION: "calibration", HELD_OUT: "held-out"}


@dataclass(frozen=True)
class WindowRequest:
    """How many windows of which length: ``length`` tokens each, drawn under ``seed``."""

    length: int
    calibration: int
    heldout: int
    seed: int = 0


@dataclass(frozen=True)
class Windows:
    """Token ids that losses are measured on.

    Args:
        calibration: ids ``[windows, length]`` that the search sees.
        heldout: ids ``[windows, length]`` from other documents, for checking the result.
    """

    calibration: TokenArray
    heldout: TokenArray

    @property
    def length(self) -> int:
        """Tokens per window."""
        return int(self.calibration.shape[1])

    def group(self, name: str) -> TokenArray:
        """The windows of ``"calibration"`` or ``"heldout"``."""
        return self.calibration if name == CALIBRATION else self.heldout


def pack(documents: Iterable[str], tokenizer: Any, request: WindowRequest) -> Windows:
    """Packs ``documents`` until both groups are full; the same input gives the same windows.

    Each document goes whole to the group that is further from full. A document of at least one window
    gives windows cut from it, spread over the document, at most an eighth of its group while other
    documents can fill the rest; shorter ones are joined with the end-of-text token between them. Each
    window opens with what the tokenizer puts before a text (BOS), as in training.

    Raises:
        DatasetError: fewer windows than asked for; says how many there are.
    """
    if request.calibration < 1 or request.heldout < 0:
        raise DatasetError("at least one calibration window is needed", hint="raise --windows")
    prefix = _prefix(tokenizer)
    groups = [_Group(CALIBRATION, request.calibration), _Group(HELD_OUT, request.heldout)]
    read = 0
    for number, text in enumerate(documents):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        group = min(groups, key=lambda each: each.fill)
        group.add(ids, prefix, tokenizer.eos_token_id, request, number)
        read += 1
        if all(each.fill >= 1 for each in groups):
            break
    arrays = {group.name: group.finish(request, read) for group in groups}
    return Windows(calibration=arrays[CALIBRATION], heldout=arrays[HELD_OUT])


@dataclass
class _Group:
    name: str
    wanted: int
    windows: list[list[int]] = field(default_factory=list)
    spare: list[list[int]] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)
    documents: int = 0

    @property
    def fill(self) -> float:
        return len(self.windows) / self.wanted if self.wanted else 1.0

    def add(self, ids: list[int], prefix: list[int], end: int | None, request: WindowRequest, number: int) -> None:
        """Takes the windows of one document (its ``number`` in the stream seeds the draw)."""
        self.documents += 1
        ids = ids[len(prefix) :] if prefix and ids[: len(prefix)] == prefix else ids
        body = request.length - len(prefix)
        if len(ids) < body:
            self.tail += ids if end is None else [*ids, end]
            while len(self.tail) >= body:
                self.windows.append(prefix + self.tail[:body])
                del self.tail[:body]
            return
        cuts = [prefix + ids[start : start + body] for start in range(0, len(ids) - body + 1, body)]
        random.Random(f"{request.seed}/{number}").shuffle(cuts)
        most = max(1, int(self.wanted * _SHARE_OF_ONE_DOCUMENT))
        self.windows += cuts[:most]
        self.spare += cuts[most : self.wanted]

    def finish(self, request: WindowRequest, read: int) -> TokenArray:
        """The group's windows ``[wanted, length]``, filled up from documents that had more to give.

        Their order is random, so that the first few are as mixed as all.
        """
        found = [*self.windows, *self.spare]
        if len(found) < self.wanted:
            raise DatasetError(
                f"{self.wanted} {_SPOKEN[self.name]} windows of {request.length} tokens were asked for, but of "
                f"the dataset's {read} documents {self.documents} fall to them, which give {len(found)}",
                hint="lower --windows, --heldout or --window, or give more text in more documents",
            )
        chosen = found[: self.wanted]
        random.Random(f"{request.seed}/{self.name}").shuffle(chosen)
        return np.asarray(chosen, dtype=np.int32).reshape(self.wanted, request.length)


def _prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: its beginning-of-text token, or nothing."""
    bos = tokenizer.bos_token_id
    added = tokenizer("a", verbose=False)["input_ids"]
    return [bos] if bos is not None and added[:1] == [bos] else []


def informative_positions(length: int, selection_width: int) -> int:
    """Positions of a window that have a label and whose query sees more keys than are selected.

    The query at position t sees t + 1 keys and the last one has no label, so the positions from
    ``selection_width`` to ``length - 2`` count. Elsewhere every pattern gives exactly the same loss.
    """
    return max(0, length - 1 - selection_width)


def informative_share(length: int, selection_width: int) -> float:
    """Informative positions over all positions with a label."""
    return informative_positions(length, selection_width) / (length - 1)


def check_length(length: int, selection_width: int) -> None:
    """Refuses a window length at which every pattern would have the same loss.

    Raises:
        WindowError: no position is informative.
    """
    if length < 2 or informative_positions(length, selection_width) == 0:
        raise WindowError(
            f"windows of {length} tokens measure nothing: the indexer selects {selection_width} keys, "
            "so up to there every pattern has the same loss",
            hint=f"the shortest informative window has {selection_width + 2} tokens; several times that is better",
        )
