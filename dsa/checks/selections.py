"""Whether a model's indexers choose better than at random: its loss beside that under two choices of no skill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...pattern import Pattern
from ..checkpoint.config import Checkpoint
from ..checkpoint.sites import expected_indexers
from ..long.scores import is_distinct, mark_distinct
from ..model.losses import PatternLosses
from ..model.tail import Window
from ..overrides import Overrides

# Nats per label by which a random choice has to be worse than the last keys: less says nothing on one window.
_TELLING = 0.02


def unskilled_indexers(model: torch.nn.Module, checkpoint: Checkpoint, token_ids: Sequence[int]) -> str | None:
    """A line for the user where the indexers do no better than chance; None where they do, or nothing shows.

    The last keys are a good choice that no indexer has to be trained for, random ones a bad one; the first key, on
    which many models rest their attention, is in both. A trained indexer is near the last or better; one whose
    weights are noise is near the random ones. In between lies the middle. Nothing shows where both choices give
    about the same loss, as on windows hardly longer than the width.

    Args:
        model: as loaded, with nothing put on it but its backends.
        checkpoint: what it was loaded from; of a family that selects tokens.
        token_ids: of a window.
    """
    width, tokens = checkpoint.selection_width, len(token_ids)
    if not checkpoint.selects_tokens or not width or tokens <= width + 1:
        return None
    recent = torch.arange(width) + torch.arange(1, tokens + 1 - width).unsqueeze(1)
    recent[:, 0] = 0
    last = _loss(model, checkpoint, token_ids, recent)
    chance = _loss(model, checkpoint, token_ids, _random_keys(width, tokens))
    loss = _loss(model, checkpoint, token_ids, None)
    if chance - last < _TELLING or loss <= (last + chance) / 2:
        return None
    return (
        f"the indexers of {checkpoint.model_id} choose hardly better than chance: on the first window the loss is "
        f"{loss:.2f} nats a token, {chance:.2f} with keys chosen at random and {last:.2f} with the last ones; "
        "their weights may be broken"
    )


def _random_keys(width: int, tokens: int) -> torch.Tensor:
    """For each query that sees more than ``width`` keys the first and others, ``[tokens - width, width]``."""
    generator = torch.Generator().manual_seed(0)
    others = [torch.randperm(seen - 1, generator=generator)[: width - 1] for seen in range(width + 1, tokens + 1)]
    return torch.nn.functional.pad(torch.stack(others) + 1, (1, 0))


def _loss(
    model: torch.nn.Module, checkpoint: Checkpoint, token_ids: Sequence[int], keys: torch.Tensor | None
) -> float:
    """In nats per label, with all indexers on; ``keys`` instead of what they choose, where a query chooses."""
    _, indexers = expected_indexers(model, checkpoint.site_layers)
    with Overrides() as overrides:
        if keys is not None:
            for indexer in indexers.values():
                overrides.replace(indexer, "forward", lambda forward: _choosing(forward, keys))
        losses = PatternLosses(model, checkpoint.site_layers)
        try:
            full = Pattern.all_full(len(checkpoint.site_layers))
            return losses.measure([full], [Window("first", token_ids)])[0][0] / (len(token_ids) - 1)
        finally:
            losses.switch.remove()


def _choosing(forward: Callable[..., Any], keys: torch.Tensor) -> Callable[..., Any]:
    def choose(*args: Any, **kwargs: Any) -> Any:
        stock = forward(*args, **kwargs)
        first = keys.shape[1]  # the first row that sees more keys than are selected
        chosen = stock.clone()
        chosen[:, first:] = keys[: stock.shape[1] - first].to(chosen)
        return mark_distinct(chosen) if is_distinct(stock) else chosen

    return choose
