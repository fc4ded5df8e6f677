"""The windows of a job: how long they are, text packed, probes made in it, and what a plan says of both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...calibrate.frozen import token_sha256
from ...calibrate.probes import KINDS, Probe, make_probes
from ...calibrate.sources import Documents, TextSource
from ...calibrate.unseen import UnseenDocuments
from ...calibrate.windows import (
    WindowGroup,
    WindowRequest,
    Windows,
    check_length,
    informative_positions,
    informative_share,
    pack,
)
from ...dsa.checkpoint.config import Checkpoint, load_tokenizer
from ...dsa.checkpoint.dtypes import compute_dtype
from ...dsa.long.backends import Backends, choose
from ...dsa.long.capacity import layer_bytes, whole_memory
from ...dsa.stream.footprint import footprint
from ...dsa.stream.room import least_on_device
from ...errors import DatasetError, ModelError, SettingError, WindowError
from ...evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT, HELD_OUT_PROBES, PROBES, REFINEMENT, Evaluate
from ...search.gate import GateKind
from ...search.goal import Goal, Method
from ...search.plan.schema import TokenIdentity
from ...search.run.folder import TOKENS_FILE
from ...search.search import Problem
from ...system import processes
from ...system.console import Reporter
from .measure import check_positions

_SMALL_SHARE = 0.5
# The default's length in selection widths and in tokens, and the share of memory that it may take.
_MOST_IN_SELECTIONS, _FEW_IN_SELECTIONS = 16, 4
_LONGEST_DEFAULT = 32768
_USABLE = 0.9


@dataclass(frozen=True)
class ProbeRequest:
    """Which probes are made.

    Args:
        of_each_kind: in the held-out windows' text, to check a plan on.
        choosing: whether every other window is to have a probe beside it, in its group's text.
        needed: whether it is an error where those that check a plan cannot be made.
    """

    of_each_kind: int
    choosing: bool = False
    needed: bool = False


def default_window(checkpoint: Checkpoint, dtype: str, request: Backends, reporter: Reporter) -> int:
    """Tokens per window where none are asked for; the reporter is told why so many.

    They are 16 x the selection width, at most the model's positions and 32,768, and halved down to 4 x the
    selection width where they would not fit. What counts is the memory that there is, not what of it is free: the
    same command is to go on with the same windows.
    """
    limits = {
        _LONGEST_DEFAULT: "as many as are taken unasked",
        checkpoint.longest or _LONGEST_DEFAULT: "as many as the model has positions",
        _MOST_IN_SELECTIONS * checkpoint.selection_width: f"{_MOST_IN_SELECTIONS} x the selection width",
    }
    longest = min(limits)
    fewest = min(longest, _FEW_IN_SELECTIONS * checkpoint.selection_width)
    halves = (longest >> halvings for halvings in range(longest.bit_length()))
    lengths = [*(length for length in halves if length > fewest), fewest]
    length = _affordable(checkpoint, dtype, request, lengths)
    reason = limits[longest] if length == longest else f"as windows of {longest:,} do not fit into memory"
    reporter.say(f"no --window was given: windows have {length:,} tokens, {reason}")
    return length


def _affordable(checkpoint: Checkpoint, dtype: str, request: Backends, lengths: Sequence[int]) -> int:
    """The first of ``lengths`` whose windows fit on every process; the last where none does."""
    device, size = processes.process_device(), compute_dtype(checkpoint, dtype).itemsize
    on_gpu = device.type == "cuda"
    memory = int(_USABLE * whole_memory(device)) // (1 if on_gpu else processes.process_count())
    sizes = footprint(checkpoint, size)
    # Of weights that take most of the memory, layers come one after the other.
    whole = 0 if sizes is None else sizes.in_memory
    memory -= max(least_on_device(sizes), min(whole, memory // 2))

    def fits(length: int) -> bool:
        backends = choose(request, checkpoint.selects_tokens, length, device.type)
        return layer_bytes(checkpoint.config, length, size, backends, on_gpu) <= memory

    length = next((length for length in lengths if fits(length)), lengths[-1])
    return processes.least(length)


def check_window(checkpoint: Checkpoint, length: int, beyond_positions: bool, reporter: Reporter) -> None:
    """Checks tokens per window; warns where few of a window's positions can tell patterns apart.

    Raises:
        WindowError: too short to tell any apart, or longer than the model's positions.
    """
    width = checkpoint.selection_width
    check_length(length, width)
    hint = "lower --window, or allow it with --beyond-positions"
    try:
        check_positions(checkpoint, length, f"windows of {length} tokens are", hint)
    except WindowError as error:
        if not beyond_positions:
            raise
        reporter.warn(f"{error}: losses at the end of them are not what the model was trained for")
    share = informative_share(length, width)
    if share < _SMALL_SHARE:
        reporter.warn(
            f"only {share:.1%} of the positions in a window of {length} are informative (indexers choose where "
            f"a query sees more than {width} keys); a window of {_FEW_IN_SELECTIONS * width} or more "
            "tells patterns apart better"
        )


def build_windows(
    checkpoint: Checkpoint,
    source: TextSource,
    request: WindowRequest,
    probes: ProbeRequest,
    reporter: Reporter,
    seen: Sequence[WindowGroup] = (),
) -> Windows:
    """Reads and packs text, and plants probes in it.

    Args:
        checkpoint: whose tokenizer is used.
        source: of the text.
        request: how many windows.
        probes: which are made.
        reporter: told of what was left out.
        seen: windows whose documents are left out.

    Raises:
        DatasetError: the text cannot be read, or is too little.
        ModelError: the tokenizer gives ids that the model does not know.
        WindowError: windows too short for probes that are needed.
    """
    tokenizer = load_tokenizer(checkpoint)
    documents = Documents(source, tokenizer, request.seed)
    if seen:
        windows = _pack_unseen(UnseenDocuments(documents, tokenizer, seen), tokenizer, request, reporter)
    else:
        windows = pack(documents, tokenizer, request)
    for note in documents.notes:
        reporter.say(f"dataset {source.dataset!r}: {note}")
    if windows.largest_id >= checkpoint.vocabulary:
        raise ModelError(
            f"the tokenizer of {checkpoint.model_id!r} gives id {windows.largest_id}, but the model knows "
            f"{checkpoint.vocabulary}",
            hint="the tokenizer files are of another model",
        )
    return windows.with_groups(_probe_groups(tokenizer, windows, request, probes, reporter))


def check_documents(windows: Windows, group: str, limit: float | None, option: str, gate: GateKind) -> None:
    """Refuses to hold a loss increase on a group to ``limit`` by an interval that its one document cannot give.

    Args:
        windows: of which none are measured yet.
        group: whose loss increase is held; one without windows is not.
        limit: that ``option`` set; None for none.
        option: its name, such as ``--max-delta``.
        gate: what is held to the limit.

    Raises:
        SettingError: nothing could pass.
    """
    if limit is not None and gate == "interval" and len(set(windows.documents(group))) == 1:
        raise SettingError(
            f"{option} holds the upper end of an interval, but all {GROUP_TITLES[group]} windows are of one "
            "document, which gives none",
            hint="give --gate estimate, or text of more documents with --dataset",
        )


def _pack_unseen(
    documents: UnseenDocuments, tokenizer: Any, request: WindowRequest, reporter: Reporter
) -> Windows:
    """Packs the documents that a search has not seen, and says how many it has.

    Raises:
        DatasetError: too few; says how many windows they give.
    """
    try:
        windows = pack(documents, tokenizer, request)
    except DatasetError as error:
        if documents.ended:
            # Nothing else fails once all are read.
            seen = f"; {documents.left_out} more are left out, as the search has seen them"
            raise DatasetError(
                f"{error}{seen if documents.left_out else ''}",
                hint="lower --windows or --window, or give more or other text with --dataset",
            ) from None
        raise
    if documents.left_out:
        reporter.say(f"documents that the search has seen are left out: {documents.left_out}")
    return windows


def _probe_groups(
    tokenizer: Any, windows: Windows, request: WindowRequest, probes: ProbeRequest, reporter: Reporter
) -> dict[str, WindowGroup]:
    """Probes that check the plan, and those that choose: never in the same text, and under other seeds."""
    groups: dict[str, WindowGroup] = {}
    if probes.choosing:
        # Each window's probe is made in the text of its own group, so that refinement's are new to the search too.
        groups[PROBES] = _group(
            [
                probe
                for place, name in enumerate((CALIBRATION, REFINEMENT))
                for probe in _mixed_probes(tokenizer, windows, name, request, 2 * request.seed + 1 + 2 * place)
            ]
        )
    if probes.of_each_kind and request.heldout:
        texts = _texts(tokenizer, windows, HELD_OUT)
        try:
            groups[HELD_OUT_PROBES] = _group(
                make_probes(tokenizer, texts, request.length, probes.of_each_kind, 2 * request.seed)
            )
        except (DatasetError, WindowError) as error:
            if probes.choosing or probes.needed:
                raise
            reporter.say(f"no probes: {error}; {error.hint}, or --probes 0 to do without")
    return groups


def _mixed_probes(tokenizer: Any, windows: Windows, name: str, request: WindowRequest, seed: int) -> list[Probe]:
    """A probe beside every window of a group, in random order, so that the first few are as mixed as all."""
    count = len(windows.group(name))
    if not count:
        return []
    texts = _texts(tokenizer, windows, name)
    made = make_probes(tokenizer, texts, request.length, -(-count // len(KINDS)), seed)
    random.Random(f"{request.seed}/{name}/{PROBES}").shuffle(made)
    return made[:count]


def _texts(tokenizer: Any, windows: Windows, name: str) -> list[list[int]]:
    """The text of a group, joined by document, without special tokens."""
    special = set(tokenizer.all_special_ids)
    texts: dict[int, list[int]] = {}
    for document, ids in zip(windows.documents(name), windows.group(name).tolist(), strict=True):
        texts.setdefault(document, []).extend(token for token in ids if token not in special)
    return list(texts.values())


def _group(probes: Sequence[Probe]) -> WindowGroup:
    answers = np.zeros((len(probes), probes[0].length - 1), dtype=np.bool_)
    for row, probe in zip(answers, probes, strict=True):
        row[list(probe.answers)] = True
    return WindowGroup(
        ids=np.asarray([probe.token_ids for probe in probes], dtype=np.int32),
        documents=np.asarray([probe.document for probe in probes], dtype=np.int32),
        answers=answers,
        kinds=tuple(probe.kind for probe in probes),
    )


def token_identity(source: TextSource, seed: int, windows: Windows, width: int) -> TokenIdentity:
    """What a plan says of its tokens."""
    return TokenIdentity(
        sha256=token_sha256(windows),
        file=TOKENS_FILE,
        dataset=source.dataset,
        subset=source.subset,
        split=source.split,
        column=source.column,
        revision=source.revision,
        seed=seed,
        window=windows.length,
        windows=len(windows.calibration),
        heldout_windows=len(windows.heldout),
        refinement_windows=len(windows.group(REFINEMENT)),
        probes=len(windows.group(HELD_OUT_PROBES)),
        informative_positions=informative_positions(windows.length, width),
        labels=windows.length - 1,
        informative_share=round(informative_share(windows.length, width), 6),
    )


def windows_problem(
    evaluate: Evaluate,
    windows: Windows,
    sites: int,
    goal: Goal,
    method: Method,
    layer_windows: Callable[[], int] = lambda: 0,
    site_layers: Sequence[int] | None = None,
) -> Problem:
    """What is to be searched, or measured again, on ``windows``; see ``Problem``."""
    return Problem(
        evaluate,
        labels={name: group.labels() for name, group in windows.groups.items()},
        documents={name: windows.documents(name) for name in windows.groups},
        sites=sites,
        goal=goal,
        method=method,
        layer_windows=layer_windows,
        site_layers=site_layers,
    )
