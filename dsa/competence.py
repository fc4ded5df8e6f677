"""Whether a loaded model predicts text better than a guess does that knows no context."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import ModelError
from ..pattern import Pattern
from .checkpoint import Checkpoint
from .losses import PatternLosses, Window


def check_competence(
    model: torch.nn.Module, checkpoint: Checkpoint, token_ids: Sequence[int], guess: float
) -> None:
    """Measures a window with all indexers on and compares; the model is left as it was.

    Args:
        model: as loaded, without a switch.
        checkpoint: what it was loaded from.
        token_ids: the window.
        guess: loss in nats per label of the guess on it.

    Raises:
        ModelError: the model's loss is no better, or is no number.
    """
    losses = PatternLosses(model, checkpoint.site_layers)
    try:
        full = Pattern.all_full(len(checkpoint.site_layers))
        loss = losses.measure([full], [Window("first", token_ids)])[0][0] / (len(token_ids) - 1)
    finally:
        losses.switch.remove()
    if loss < guess:
        return
    error = ModelError(
        f"{checkpoint.model_id!r} predicts the first window no better than word frequencies do: its loss is "
        f"{loss:.2f} nats a token, theirs {guess:.2f}",
        hint="its weights, its config or its tokenizer are wrong, or it was never trained; --untrained searches "
        "all the same",
    )
    error.shared = True  # each process measures the same window
    raise error
