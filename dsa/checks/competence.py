"""Whether a loaded model predicts text better than a guess does that knows no context, or than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...pattern import Pattern
from ..checkpoint.config import Checkpoint
from ..checkpoint.stored.unread import shared_refusal
from ..model.losses import PatternLosses
from ..model.tail import Window


@dataclass(frozen=True)
class Guess:
    """A window's token ids, and the loss in nats per label of a guess on it that knows no context."""

    token_ids: Sequence[int]
    loss: float


def check_competence(model: torch.nn.Module, checkpoint: Checkpoint, guess: Guess) -> None:
    """Measures a window with all indexers on and compares; the model is left as it was.

    Args:
        model: as loaded, without a switch.
        checkpoint: what it was loaded from.
        guess: the window, and what to be better than.

    Raises:
        ModelError: the model's loss is no better, or is no number.
    """
    losses = PatternLosses(model, checkpoint.site_layers)
    try:
        full = Pattern.all_full(len(checkpoint.site_layers))
        loss = losses.measure([full], [Window("first", guess.token_ids)])[0][0] / (len(guess.token_ids) - 1)
    finally:
        losses.switch.remove()
    if loss < guess.loss:
        return
    chance = math.log(checkpoint.vocabulary)
    without, losses_of_others = "word frequencies do", f"theirs {guess.loss:.2f}"
    if not loss < chance:
        without += ", nor than chance"
        losses_of_others += f", chance's {chance:.2f} (ln of its {checkpoint.vocabulary} tokens)"
    raise shared_refusal(  # every process measures the same window
        f"{checkpoint.model_id!r} predicts the first window no better than {without}: its loss is {loss:.2f} nats "
        f"a token, {losses_of_others}",
        "its weights, its config or its tokenizer are wrong, or it was never trained; --untrained leaves this "
        "check out, --no-selfcheck all of them",
    )
