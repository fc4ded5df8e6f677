"""Packs documents into fixed-length windows; what a search sees and what checks it are kept apart by document."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, WindowError
from ..evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT, LEARNING, REFINEMENT

TokenArray = npt.NDArray[np.int32]

# Where calibration takes what there is, the other groups get documents as if it asked for so many windows.
_SHARED_AS = 32


@dataclass(frozen=True)
class WindowRequest:
    """How many windows of which length: ``length`` tokens each, drawn under ``seed``; refinement's apart,
    and those that indexers learn from, of which fewer will do.

    With ``as_many_as_there_are``, fewer calibration windows will do, and past ``_SHARED_AS`` of them the other
    groups come first.
    """

    length: int
    calibration: int
    heldout: int
    seed: int = 0
    refinement: int = 0
    as_many_as_there_are: bool = False
    learning: int = 0


@dataclass(frozen=True)
class WindowGroup:
    """Windows that are measured together.

    Args:
        ids: token ids ``[windows, length]``.
        documents: ``[windows]``, equal numbers for windows that share a document, or are linked by others that do:
            the clusters of the standard error.
        answers: ``[windows, length - 1]``, which labels count; None for all. Label t is token t + 1.
        kinds: what each window probes; empty for text.
    """

    ids: TokenArray
    documents: TokenArray
    answers: npt.NDArray[np.bool_] | None = None
    kinds: tuple[str, ...] = ()

    def labels(self) -> list[int]:
        """How many labels of each window count."""
        if self.answers is None:
            return [self.ids.shape[1] - 1] * len(self.ids)
        return [int(count) for count in self.answers.sum(axis=1)]


@dataclass(frozen=True)
class Windows:
    """Token ids that losses are measured on, by group; all windows have one length.

    The groups of text are from different documents each: ``calibration`` is what the search sees, ``refinement``
    what its swaps are judged on, ``learning`` what distilled indexers of its
    candidates learn from, ``heldout`` checks the result. Probes are made from the text of others.
    """

    groups: Mapping[str, WindowGroup]

    @property
    def calibration(self) -> TokenArray:
        """Ids ``[windows, length]`` that the search sees."""
        return self.groups[CALIBRATION].ids

    @property
    def heldout(self) -> TokenArray:
        """Ids ``[windows, length]`` for checking the result."""
        return self.groups[HELD_OUT].ids

    @property
    def length(self) -> int:
        """Tokens per window."""
        return int(self.calibration.shape[1])

    @property
    def largest_id(self) -> int:
        """The largest token id of all windows, which the model has to know."""
        return max(int(group.ids.max(initial=0)) for group in self.groups.values())

    def group(self, name: str) -> TokenArray:
        """The windows of a group; none where there is no such group."""
        group = self.groups.get(name)
        return np.empty((0, self.length), np.int32) if group is None else group.ids

    def documents(self, name: str) -> tuple[int, ...]:
        """The document of each window of a group; the first of them where windows share or join several."""
        group = self.groups.get(name)
        return () if group is None else tuple(group.documents.tolist())

    def with_groups(self, groups: Mapping[str, WindowGroup]) -> Windows:
        """These windows and more; groups without windows are left out."""
        return Windows({**self.groups, **{name: group for name, group in groups.items() if len(group.ids)}})


def pack(documents: Iterable[str], tokenizer: Any, request: WindowRequest) -> Windows:
    """Packs ``documents`` until all groups are full; the same input gives the same windows.

    Each document goes whole to the group that is further from full, or from its share where calibration takes as
    many as there are. A document that fills a window gives
    one, cut at random. Shorter documents are joined with the end-of-text token between them; each such window
    begins with a document that no other window holds. Where documents run out, the same ones give more: the
    long ones in turn, then what is left of the short ones. Each window opens with what the tokenizer puts
    before a text, as in training.

    Raises:
        DatasetError: fewer windows than asked for; says how many there are.
    """
    prefix = text_opening(tokenizer)
    share = min(request.calibration, _SHARED_AS) if request.as_many_as_there_are else request.calibration
    groups = [_Group(CALIBRATION, request.calibration, share), _Group(HELD_OUT, request.heldout, request.heldout)]
    if request.refinement:
        groups.append(_Group(REFINEMENT, request.refinement, request.refinement))
    if request.learning:
        groups.append(_Group(LEARNING, request.learning, request.learning, behind=True))
    count = 0
    for number, text in enumerate(documents):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        lacking = [candidate for candidate in groups if not candidate.is_full]
        group = min(lacking or groups, key=lambda candidate: candidate.fill)
        group.add(ids, prefix, tokenizer.eos_token_id, request, number)
        count += 1
        if all(candidate.is_full for candidate in groups):
            break
    return Windows({group.name: group.finish(request, prefix, count) for group in groups})


@dataclass
class _Group:
    """One group being filled: its windows, and what its documents could give more.

    ``share`` of its ``count`` windows decide which group the next document goes to; one that is ``behind`` gets
    documents once the others have their share.

    A window is its ids and the documents that they are of. What a window's end leaves of a short document goes to
    the next tail, where rests are joined likewise: so windows share documents only where they have to, and few.
    """

    name: str
    count: int
    share: int
    behind: bool = False
    windows: list[tuple[set[int], list[int]]] = field(default_factory=list)
    spare: list[list[tuple[set[int], list[int]]]] = field(default_factory=list)
    tails: defaultdict[int, list[tuple[int, list[int]]]] = field(default_factory=lambda: defaultdict(list))
    rest_windows: defaultdict[int, list[tuple[set[int], list[int]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    documents: int = 0

    @property
    def fill(self) -> float:
        """Its windows over its share of them."""
        return self.behind + (len(self.windows) / self.share if self.share else 1.0)

    @property
    def is_full(self) -> bool:
        """Whether it has all windows that it wants."""
        return len(self.windows) >= self.count

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
        cuts = [({number}, prefix + ids[start : start + body]) for start in starts[: self.count]]
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

    def finish(self, request: WindowRequest, prefix: list[int], total: int) -> WindowGroup:
        """The group's windows ``[count, length]`` and their documents ``[count]``.

        Their order is random, so that the first few are as mixed as all.
        """
        # In turn: the second window of every long document before the third of any: as many documents as can be.
        spare_windows = [window for round_ in zip_longest(*self.spare) for window in round_ if window is not None]
        joined_windows = chain(*(windows for _, windows in sorted(self.rest_windows.items())))
        tail_windows = self._tail_windows(prefix, request.length - len(prefix))
        windows = [*self.windows, *spare_windows, *joined_windows, *tail_windows]
        takes_what_there_is = self.name == LEARNING or (request.as_many_as_there_are and self.name == CALIBRATION)
        if len(windows) < self.count and not (takes_what_there_is and windows):
            raise DatasetError(
                f"{self.count} {GROUP_TITLES[self.name]} windows of {request.length} tokens were asked for, but "
                f"of the dataset's {total} documents {self.documents} fall to them, which give {len(windows)}",
                hint="lower --windows, --heldout or --window, or give more documents; one document cannot serve "
                "both groups, --heldout 0 does without the second",
            )
        chosen_windows = windows[: self.count]
        random.Random(f"{request.seed}/{self.name}").shuffle(chosen_windows)
        ids = np.asarray([ids for _, ids in chosen_windows], dtype=np.int32).reshape(
            len(chosen_windows), request.length
        )
        return WindowGroup(ids, np.asarray(_clusters([origins for origins, _ in chosen_windows]), dtype=np.int32))


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
