"""Packs documents into fixed-length windows, calibration and held-out kept apart by document."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, WindowError
from ..evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT

TokenArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class WindowRequest:
    """How many windows of which length: ``length`` tokens each, drawn under ``seed``."""

    length: int
    calibration: int
    heldout: int
    seed: int = 0


@dataclass(frozen=True)
class Windows:
    """Token ids that losses are measured on, and which document each window is from.

    Args:
        calibration: ids ``[windows, length]`` that the search sees.
        heldout: ids ``[windows, length]`` from other documents, for checking the result.
        calibration_documents: ``[windows]``, equal numbers for windows that share a document, or are linked by
            others that do: the clusters of the standard error.
        heldout_documents: likewise.
    """

    calibration: TokenArray
    heldout: TokenArray
    calibration_documents: TokenArray
    heldout_documents: TokenArray

    @property
    def length(self) -> int:
        """Tokens per window."""
        return int(self.calibration.shape[1])

    def group(self, name: str) -> TokenArray:
        """The windows of a group."""
        return self.calibration if name == CALIBRATION else self.heldout

    def documents(self, name: str) -> tuple[int, ...]:
        """The document of each window of a group; the first of them where windows share or join several."""
        documents = self.calibration_documents if name == CALIBRATION else self.heldout_documents
        return tuple(documents.tolist())


def pack(documents: Iterable[str], tokenizer: Any, request: WindowRequest) -> Windows:
    """Packs ``documents`` until both groups are full; the same input gives the same windows.

    Each document goes whole to the group that is further from full. A document that fills a window gives
    one, cut at random. Shorter documents are joined with the end-of-text token between them; each such window
    begins with a document that no other window holds. Where documents run out, the same ones give more: the
    long ones in turn, then what is left of the short ones. Each window opens with what the tokenizer puts
    before a text, as in training.

    Raises:
        DatasetError: fewer windows than asked for; says how many there are.
    """
    prefix = text_opening(tokenizer)
    groups = [_Group(CALIBRATION, request.calibration), _Group(HELD_OUT, request.heldout)]
    count = 0
    for number, text in enumerate(documents):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        group = min(groups, key=lambda candidate: candidate.fill)
        group.add(ids, prefix, tokenizer.eos_token_id, request, number)
        count += 1
        if all(candidate.fill >= 1 for candidate in groups):
            break
    (calibration, calibration_documents), (heldout, heldout_documents) = [
        group.finish(request, prefix, count) for group in groups
    ]
    return Windows(calibration, heldout, calibration_documents, heldout_documents)


@dataclass
class _Group:
    """One group being filled: its windows, and what its documents could give more.

    A window is its ids and the documents that they are of. What a window's end leaves of a short document goes to
    the next tail, where rests are joined likewise: so windows share documents only where they have to, and few.
    """

    name: str
    wanted: int
    windows: list[tuple[set[int], list[int]]] = field(default_factory=list)
    spare: list[list[tuple[set[int], list[int]]]] = field(default_factory=list)
    tails: defaultdict[int, list[tuple[int, list[int]]]] = field(default_factory=lambda: defaultdict(list))
    rest_windows: defaultdict[int, list[tuple[set[int], list[int]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    documents: int = 0

    @property
    def fill(self) -> float:
        return len(self.windows) / self.wanted if self.wanted else 1.0

    def add(self, ids: list[int], prefix: list[int], end: int | None, request: WindowRequest, number: int) -> None:
        """Takes a document; its ``number`` in the stream seeds where it is cut."""
        self.documents += 1
        # Rendered chats bring the prefix along; every window gets it below.
        ids = ids[len(prefix) :] if prefix and ids[: len(prefix)] == prefix else ids
        body = request.length - len(prefix)
        if len(ids) < body:
            self._join(number, ids if end is None else [*ids, end], prefix, body)
            return
        draw = random.Random(f"{request.seed}/{number}")
        # At random within what does not fill a window: else no window would ever hold a document's last tokens.
        offset = draw.randrange(len(ids) % body + 1)
        starts = list(range(offset, len(ids) - body + 1, body))
        draw.shuffle(starts)
        # No document can be asked for more windows than the group wants.
        cuts = [({number}, prefix + ids[start : start + body]) for start in starts[: self.wanted]]
        self.windows.append(cuts[0])
        self.spare.append(cuts[1:])

    def _join(self, number: int, ids: list[int], prefix: list[int], body: int, depth: int = 0) -> None:
        """Puts a document's ids, or a rest of them, on a tail, and cuts a window where that is full."""
        tail = self.tails[depth]
        missing = body - sum(len(piece) for _, piece in tail)
        tail.append((number, ids[:missing]))
        if len(ids) < missing:
            return
        windows = self.rest_windows[depth] if depth else self.windows
        windows.append(({origin for origin, _ in tail}, prefix + [token for _, piece in tail for token in piece]))
        tail.clear()
        # The rest goes one level down: on this level the next window begins with the next document.
        if rest := ids[missing:]:
            self._join(number, rest, prefix, body, depth + 1)

    def _tail_windows(self, prefix: list[int], body: int) -> list[tuple[set[int], list[int]]]:
        """Windows of all ids that filled none so far; the last resort, as many documents meet in one."""
        pieces = chain(*(tail for _, tail in sorted(self.tails.items())))
        ids = [(number, token) for number, piece in pieces for token in piece]
        cuts = [ids[start : start + body] for start in range(0, len(ids) - body + 1, body)]
        return [({number for number, _ in cut}, prefix + [token for _, token in cut]) for cut in cuts]

    def finish(self, request: WindowRequest, prefix: list[int], read: int) -> tuple[TokenArray, TokenArray]:
        """The group's windows ``[wanted, length]`` and their documents ``[wanted]``.

        Their order is random, so that the first few are as mixed as all.
        """
        # In turn: the second window of every long document before the third of any: as many documents as can be.
        spare_windows = [window for round_ in zip_longest(*self.spare) for window in round_ if window is not None]
        joined_windows = chain(*(windows for _, windows in sorted(self.rest_windows.items())))
        tail_windows = self._tail_windows(prefix, request.length - len(prefix))
        windows = [*self.windows, *spare_windows, *joined_windows, *tail_windows]
        if len(windows) < self.wanted:
            raise DatasetError(
                f"{self.wanted} {GROUP_TITLES[self.name]} windows of {request.length} tokens were asked for, but "
                f"of the dataset's {read} documents {self.documents} fall to them, which give {len(windows)}",
                hint="lower --windows, --heldout or --window, or give more documents; one document cannot serve "
                "both groups, --heldout 0 does without the second",
            )
        drawn = windows[: self.wanted]
        random.Random(f"{request.seed}/{self.name}").shuffle(drawn)
        ids = np.asarray([ids for _, ids in drawn], dtype=np.int32).reshape(self.wanted, request.length)
        return ids, np.asarray(_clusters([origins for origins, _ in drawn]), dtype=np.int32)


def _clusters(origins: list[set[int]]) -> list[int]:
    """A number for each window, the same for those that share a document, or are linked by others that do.

    It is the first document of all that are linked: its own for a window of one document that no other is of.
    """
    # Disjoint sets: a document's parent is an earlier one that it is linked with, or itself.
    parents: dict[int, int] = {}

    def root(document: int) -> int:
        while parents.setdefault(document, document) != document:
            document = parents[document]
        return document

    for documents in origins:
        roots = {root(document) for document in documents}
        parents.update(dict.fromkeys(roots, min(roots)))
    return [root(min(documents)) for documents in origins]


def text_opening(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: BOS, ``[gMASK]<sop>``, or nothing."""
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    added: list[int] = tokenizer("a", verbose=False)["input_ids"]
    for start in range(len(added) - len(bare) + 1):
        if added[start : start + len(bare)] == bare:
            return added[:start]
    return []


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
            f"windows of {length} tokens measure nothing: indexers choose only where a query sees more than "
            f"{selection_width} keys, and up to there every pattern has the same loss",
            hint=f"the shortest informative window has {selection_width + 2} tokens; several times that is better",
        )
