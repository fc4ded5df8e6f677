"""Measures a plan's fingerprint, which tells whether a running server runs the plan, and writes it beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from ..calibrate.windows import Windows, text_opening
from ..dsa.checkpoint.config import Checkpoint, file_sha256, load_tokenizer
from ..dsa.checkpoint.dtypes import dtype_name
from ..dsa.checkpoint.stored.weights import StoredWeights
from ..dsa.long.backends import Backends
from ..dsa.long.capacity import process_memory
from ..dsa.model.evaluator import Evaluator
from ..dsa.model.tail import Predictions
from ..dsa.stream.layers import stream_of
from ..errors import ModelError, PlanError, WindowError
from ..pattern import Pattern
from ..search.fingerprint.assemble import Texts, assemble
from ..search.fingerprint.choice import WindowPredictions, spreads, squared_moves
from ..search.fingerprint.document import (
    TOP,
    FingerprintRun,
    FingerprintTokenizer,
    fingerprint_file,
    plan_sha256,
    read_fingerprint,
    write_fingerprint,
)
from ..search.fingerprint.known import ALL_FULL, NamedPattern, known_patterns
from ..search.fingerprint.likelihood import LEAST_SPREAD, Array
from ..search.plan.schema import Plan
from ..search.run.folder import has_report, render_beside
from ..system import processes
from ..system.console import Reporter
from .job.measure import Loaded, evaluator, load

# Prefixes are requests: they are as short as tells patterns apart, which takes more than the selection.
_LONGEST: Final = 1024
_LONGEST_IN_SELECTIONS = 2
# As many windows as have so many prefixes to choose from, within limits.
_PREFIXES_TO_CHOOSE_FROM = 750
_FEWEST_WINDOWS, _MOST_WINDOWS = 4, 8
# Nats: what bfloat16 moves a log-probability where no other dtype was run; 0.04 on the embedded model.
_ASSUMED = 0.03
_LONGER = "a token longer"
# Of the free memory, what a second copy of the model may take.
_COPY_SHARE = 0.5
# What decoding gives for bytes that are no character.
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Source:
    """What a fingerprint is measured with.

    Args:
        loaded: the plan's model, as its losses were measured.
        weights: of it.
        windows: the plan's.
        measured: runs the model under patterns.
    """

    loaded: Loaded
    weights: StoredWeights
    windows: Windows
    measured: Evaluator

    @property
    def checkpoint(self) -> Checkpoint:
        """Whose model it is."""
        return self.loaded.checkpoint


def stands(plan: Plan, path: Path) -> bool:
    """Whether the fingerprint of ``plan`` is beside its file ``path``."""
    try:
        return read_fingerprint(fingerprint_file(path)).model.plan_sha256 == plan_sha256(plan)
    except PlanError:
        return False


def write_beside(plan: Plan, path: Path, source: Source, reporter: Reporter) -> None:
    """Measures the fingerprint of ``plan`` and writes it beside its file ``path``; says so where it has none.

    Raises:
        MeasurementError: memory ran out.
        OutputError: it cannot be written.
    """
    windows, positions = _windows(plan, source.windows)
    known, file = known_patterns(plan), fingerprint_file(path)
    if not positions or len(known) < 2:
        reporter.warn("no fingerprint: the plan's windows tell it from no other pattern")
        return
    reporter.say(
        f"measuring the fingerprint: {len(known)} patterns on {len(windows)} windows of {len(windows[0])} tokens"
    )
    predictions, compared = _predictions(source, known, windows, positions, reporter)
    run = FingerprintRun(
        dtype=plan.run.dtype, device=plan.run.device, versions=plan.run.versions, compared=compared
    )

    def write() -> bool:
        texts = _texts(source.checkpoint, windows)
        if (fingerprint := assemble(plan, known, windows, predictions, texts, run)) is not None:
            write_fingerprint(file, fingerprint)
            _render_again(plan, path, reporter)
            if fingerprint.hides(ALL_FULL):
                reporter.warn("no prefix tells the plan from all full, so that check will not be sure")
        return fingerprint is not None

    if processes.run_on_main(write):
        reporter.say(f"fingerprint written to {file}")
    else:
        reporter.warn("no fingerprint: no prefix tells the plan from another pattern")


def _render_again(plan: Plan, path: Path, reporter: Reporter) -> None:
    """Renders what stands beside a plan again: its card says that there is a fingerprint."""
    with suppress(PlanError):  # times that cannot be read must not cost the search
        if has_report(path):
            render_beside(plan, path, warn=reporter.warn)


def _windows(plan: Plan, windows: Windows) -> tuple[list[list[int]], list[int]]:
    """Windows that prefixes are cut from, no longer than the longest, and after which tokens they may end."""
    width = plan.model.selection_width
    ids = windows.heldout if len(windows.heldout) else windows.calibration
    length = min(windows.length, max(_LONGEST, _LONGEST_IN_SELECTIONS * width) + 1)
    quiet = list(range(max(0, width - 8), min(width, length - 1)))
    telling = list(range(width + 1, length - 1))
    if not telling:
        return [], []
    count = min(max(_FEWEST_WINDOWS, -(-_PREFIXES_TO_CHOOSE_FROM // len(telling))), _MOST_WINDOWS)
    return ids[:count, :length].tolist(), quiet + telling


def _predictions(
    source: Source,
    known: Sequence[NamedPattern],
    windows: Sequence[Sequence[int]],
    positions: Sequence[int],
    reporter: Reporter,
) -> tuple[list[WindowPredictions], tuple[str, ...]]:
    """What all patterns predict in each window, and what other ways of running the model were compared.

    Those are run under the first two patterns alone: the plan, and mostly all full.
    """
    patterns = [named.pattern for named in known]
    reporter.begin(len(windows) * len(patterns), "window evaluations", guessed=True)
    measured = source.measured.predictions(patterns, windows, positions, TOP)
    compared: list[str] = []
    moves: list[list[Array]] = []
    for name, moved in _other_ways(source, patterns[:2], windows, positions, reporter):
        compared.append(name)
        pairs = zip(measured, moved, strict=True)
        moves.append(
            [
                squared_moves(here.tokens, here.logprobs[:, :, :2], there.tokens, there.logprobs)
                for here, there in pairs
            ]
        )
    least = _ASSUMED if compared[0].endswith(_LONGER) else LEAST_SPREAD
    return [
        WindowPredictions(np.array(positions), given.tokens, given.logprobs, spread)
        for given, spread in zip(measured, spreads(moves, least), strict=True)
    ], tuple(compared)


def _other_ways(
    source: Source,
    patterns: Sequence[Pattern],
    windows: Sequence[Sequence[int]],
    positions: Sequence[int],
    reporter: Reporter,
) -> Iterator[tuple[str, list[Predictions]]]:
    """Other ways of running the model, by name, and what it predicts then.

    Where a copy fits, in another dtype on transformers' own code, with each of its attentions; else in another
    shape, as rounding goes by that too.
    """
    if (copy := _copy(source, len(windows[0]), reporter)) is None:
        longer = [[*window, window[-1]] for window in windows]
        name = f"{dtype_name(source.loaded.model.dtype)}, {_LONGER}"
        yield name, source.measured.predictions(patterns, longer, positions, TOP)
        return
    reporter.begin(2 * len(patterns) * len(windows), "window evaluations in another dtype", guessed=True)
    model = evaluator(copy, source.windows, reporter)
    default = str(copy.model.config._attn_implementation)
    for attention in dict.fromkeys((default, "eager")):
        copy.model.set_attn_implementation(attention)
        name = f"{dtype_name(copy.model.dtype)}, stock indexers, {attention} attention"
        yield name, model.predictions(patterns, windows, positions, TOP)


def _copy(source: Source, length: int, reporter: Reporter) -> Loaded | None:
    """The model again in another dtype, on transformers' own code; None where it has no room, or layers stream."""
    model, running = source.loaded.model, source.loaded.running
    other = torch.bfloat16 if model.dtype == torch.float32 else torch.float32
    size = sum(parameter.numel() for parameter in model.parameters()) * other.itemsize
    free = process_memory(processes.process_device(), processes.process_count())
    if stream_of(model) is not None or not processes.least(int(size < _COPY_SHARE * free)):
        return None
    changed = replace(running, dtype=dtype_name(other), computes_in=other, backends=Backends())
    try:
        return load(source.checkpoint, source.weights, changed, length, reporter)
    except (WindowError, ModelError):  # quantised weights that run in one dtype alone, or windows too long for it
        return None


def _texts(checkpoint: Checkpoint, windows: Sequence[Sequence[int]]) -> Texts:
    """The checkpoint's tokenizer; one that cannot be loaded gives no texts."""
    file = checkpoint.folder / "tokenizer.json"
    digest = file_sha256(file) if file.is_file() else None
    try:
        tokenizer = load_tokenizer(checkpoint)
        opening = text_opening(tokenizer)
    except ModelError:
        unknown = FingerprintTokenizer(sha256=digest, vocabulary=checkpoint.vocabulary, opening=(), opens=False)
        return Texts(lambda token: "", lambda ids: None, unknown)
    opens = all(list(window[: len(opening)]) == opening for window in windows)

    def decoded(ids: Sequence[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return "" if _NO_TEXT in text else str(text)

    def of_prefix(ids: Sequence[int]) -> str | None:
        text = decoded(ids[len(opening) :] if opens else ids)
        return text if text and tokenizer(text, verbose=False)["input_ids"] == list(ids) else None

    known = FingerprintTokenizer(
        sha256=digest, vocabulary=checkpoint.vocabulary, opening=tuple(opening), opens=opens
    )
    return Texts(lambda token: decoded([token]), of_prefix, known)
