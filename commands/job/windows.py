"""The windows of a job: text packed, probes made in it, and what a plan says of both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...calibrate.frozen import token_sha256
from ...calibrate.probes import KINDS, Probe, make_probes
from ...calibrate.sources import Documents, TextSource
from ...calibrate.windows import (
    WindowGroup,
    WindowRequest,
    Windows,
    informative_positions,
    informative_share,
    pack,
)
from ...dsa.checkpoint.config import Checkpoint, load_tokenizer
from ...errors import DatasetError, ModelError, WindowError
from ...evaluate import CALIBRATION, HELD_OUT, HELD_OUT_PROBES, PROBES, REFINEMENT, Evaluate
from ...search.goal import Goal, Method
from ...search.plan.schema import TokenIdentity
from ...search.run.folder import TOKENS_FILE
from ...search.search import Problem
from ...system.console import Reporter


def build_windows(
    checkpoint: Checkpoint,
    source: TextSource,
    request: WindowRequest,
    probes: int,
    mixes_probes: bool,
    reporter: Reporter,
) -> Windows:
    """Reads and packs text, and plants probes in it.

    Args:
        checkpoint: whose tokenizer is used.
        source: of the text.
        request: how many windows.
        probes: of each kind, in the held-out windows' text.
        mixes_probes: whether every other window is to have a probe beside it, in its group's text.
        reporter: told of what was left out.

    Raises:
        DatasetError: the text cannot be read, or is too little.
        ModelError: the tokenizer gives ids that the model does not know.
        WindowError: windows too short for the probes that are to choose.
    """
    tokenizer = load_tokenizer(checkpoint)
    documents = Documents(source, tokenizer, request.seed)
    windows = pack(documents, tokenizer, request)
    for note in documents.notes:
        reporter.say(f"dataset {source.dataset!r}: {note}")
    if windows.largest_id >= checkpoint.vocabulary:
        raise ModelError(
            f"the tokenizer of {checkpoint.model_id!r} gives id {windows.largest_id}, but the model knows "
            f"{checkpoint.vocabulary}",
            hint="the tokenizer files are of another model",
        )
    return windows.with_groups(_probe_groups(tokenizer, windows, request, probes, mixes_probes, reporter))


def _probe_groups(
    tokenizer: Any, windows: Windows, request: WindowRequest, probes: int, mixes_probes: bool, reporter: Reporter
) -> dict[str, WindowGroup]:
    """Probes that check the plan, and those that choose: never in the same text, and under other seeds."""
    groups: dict[str, WindowGroup] = {}
    if mixes_probes:
        texts = _texts(tokenizer, windows, (CALIBRATION, REFINEMENT))
        count = request.calibration + request.refinement
        made = make_probes(tokenizer, texts, request.length, -(-count // len(KINDS)), 2 * request.seed + 1)
        # In random order, so that the first few are as mixed as all.
        random.Random(f"{request.seed}/{PROBES}").shuffle(made)
        groups[PROBES] = _group(made[:count])
    if probes and request.heldout:
        texts = _texts(tokenizer, windows, (HELD_OUT,))
        try:
            groups[HELD_OUT_PROBES] = _group(
                make_probes(tokenizer, texts, request.length, probes, 2 * request.seed)
            )
        except (DatasetError, WindowError) as error:
            if mixes_probes:
                raise
            reporter.say(f"no probes: {error}")
    return groups


def _texts(tokenizer: Any, windows: Windows, groups: Sequence[str]) -> list[list[int]]:
    """The text of some groups, joined by document, without special tokens."""
    special = set(tokenizer.all_special_ids)
    texts: dict[int, list[int]] = {}
    for name in groups:
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
