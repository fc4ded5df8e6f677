"""Puts a fingerprint together from what was measured, so that the same measurements give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..plan.schema import Plan
from .choice import PREFIXES, Choice, WindowPredictions, alike, choose
from .document import (
    LOWEST,
    TOP,
    Candidate,
    Fingerprint,
    FingerprintModel,
    FingerprintRun,
    FingerprintTokenizer,
    Prefix,
    plan_sha256,
)
from .known import NamedPattern, over_layers

# Nats: servers give about four decimals.
_DECIMALS = 4
# Below this log-likelihood ratio over all prefixes, a pattern passes for the plan.
_TOLD = 15.0


@dataclass(frozen=True)
class Texts:
    """What the checkpoint's tokenizer makes of token ids.

    Args:
        of_token: a token's text alone; "" where it is none.
        of_prefix: the text that gives exactly the first so many tokens of a window; None where no text does.
        tokenizer: which one it is.
    """

    of_token: Callable[[int], str]
    of_prefix: Callable[[Sequence[int]], str | None]
    tokenizer: FingerprintTokenizer


def assemble(
    plan: Plan,
    known: Sequence[NamedPattern],
    windows: Sequence[Sequence[int]],
    predictions: Sequence[WindowPredictions],
    texts: Texts,
    run: FingerprintRun,
    count: int = PREFIXES,
) -> Fingerprint | None:
    """The fingerprint of ``plan``; None where no prefix tells it from any other pattern.

    Args:
        plan: whose it is.
        known: patterns, the plan's first.
        windows: token ids.
        predictions: of each window under every pattern.
        texts: of tokens and prefixes.
        run: how all was measured.
        count: of prefixes.
    """
    if len(known) < 2:
        return None
    choices = choose(
        predictions,
        plan.model.selection_width,
        count,
        TOP,
        lambda window, position: texts.of_prefix(windows[window][: position + 1]),
        sum(not named.near for named in known),
    )
    hidden = set(alike(predictions, choices, TOP, _TOLD))
    told = [number for number in range(len(known)) if number not in hidden]
    if len(told) < 2:
        return None
    return Fingerprint(
        model=FingerprintModel(
            id=plan.model.id,
            weights_sha256=plan.model.weights_sha256,
            plan_sha256=plan_sha256(plan),
            pattern=plan.result.layer_pattern,
            selection_width=plan.model.selection_width,
        ),
        tokenizer=texts.tokenizer,
        run=run,
        patterns=tuple(over_layers(plan, known[number]) for number in told),
        alike=tuple(over_layers(plan, known[number]) for number in sorted(hidden)),
        prefixes=tuple(
            _prefix(windows[choice.window], predictions[choice.window], choice, told, texts) for choice in choices
        ),
    )


def _prefix(
    window: Sequence[int], predictions: WindowPredictions, choice: Choice, told: Sequence[int], texts: Texts
) -> Prefix:
    """A chosen prefix with its candidates, the likeliest under the plan first."""
    row = choice.row
    logprobs = np.round(predictions.logprobs[row][:, told].astype(float), _DECIMALS)
    is_token = predictions.tokens[row] >= 0
    order = sorted(
        np.flatnonzero(is_token), key=lambda place: (-logprobs[place, 0], predictions.tokens[row][place])
    )
    return Prefix(
        tokens=tuple(map(int, window[: int(predictions.positions[row]) + 1])),
        text=choice.text,
        candidates=tuple(
            Candidate(
                token=int(predictions.tokens[row][place]),
                text=texts.of_token(int(predictions.tokens[row][place])),
                logprobs=tuple(max(LOWEST, min(0.0, float(value))) for value in logprobs[place]),
            )
            for place in order
        ),
        spread=round(float(predictions.spread[row]), _DECIMALS),
    )
