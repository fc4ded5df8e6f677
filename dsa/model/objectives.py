"""What logits under a pattern say beside all full's: loss, divergence, agreement; and which labels are key."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ...evaluate import WindowLoss

# Below this the series of exp(-x) - 1 + x is exact to fp32, above it the plain form is: the terms that cancel are
# then at most eight times as large as what remains of them.
_SERIES_BELOW = 0.25
_PLAIN_ABOVE = 2.0
_MOST_GAIN = 5.0
# A window whose labels gain less than this on average knows nothing from far away; its labels then count alike.
_LEAST_MEAN_GAIN = 1e-3
# Key tokens are those that profit from a context eight times as long.
_SHORT_CONTEXTS_IN_WINDOW = 8
_SHORTEST_CONTEXT = 16


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy ``[rows]`` in nats of ``labels`` ``[rows]`` under fp32 ``logits`` ``[rows, vocabulary]``."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def divergences(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(reference) || softmax(logits))`` of each row, in nats.

    With ``p = softmax(reference)``, ``d = reference - logits`` and its mean ``m = sum of p d``, the divergence is
    ``log(1 + sum of p (exp(m - d) - 1 + (d - m)))``. No summand is negative, so nothing cancels: a difference
    of two log-probabilities would leave fp32 no digits where two patterns nearly agree.

    Args:
        reference: all full's logits ``[rows, vocabulary]``, fp32.
        logits: the pattern's, likewise.

    Returns:
        ``[rows]`` in fp64.
    """
    shares = reference.softmax(-1)
    # In fp32 a softmax over a vocabulary sums up to 1 within a millionth only, which the divergence would inherit.
    total = shares.sum(-1, dtype=torch.float64)
    distance = reference - logits
    mean = (shares * distance).sum(-1, dtype=torch.float64) / total
    distance -= mean.float().unsqueeze(-1)
    # exp(-x) - 1 + x = x^2/2 - x^3/6 + x^4/24 - ...
    series = 1 / 120 - distance * (1 / 720 - distance / 5040)
    series = distance * distance * (0.5 - distance * (1 / 6 - distance * (1 / 24 - distance * series)))
    excess = torch.where(distance.abs() < _SERIES_BELOW, series, torch.expm1(-distance) + distance)
    divergence = (shares * excess).sum(-1, dtype=torch.float64).div(total).log1p()
    # Where the distributions have little in common, exp overflows, and the plain form has nothing to cancel.
    apart = ~(divergence < _PLAIN_ABOVE)
    if apart.any():
        divergence[apart] = mean[apart] + _log_sums(logits[apart]) - _log_sums(reference[apart])
    return divergence


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """``log(sum of exp(logits))`` of each row, in fp64."""
    highest = logits.amax(-1, keepdim=True)
    return highest[:, 0].double() + (logits - highest).exp().sum(-1, dtype=torch.float64).log()


def window_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reference: torch.Tensor | None = None,
    key_weights: torch.Tensor | None = None,
) -> WindowLoss:
    """What ``logits`` say, summed over their rows in fp64.

    Args:
        logits: ``[rows, vocabulary]`` under a pattern, fp32.
        labels: ``[rows]``.
        reference: all full's logits, likewise; what needs them is NaN without.
        key_weights: ``[rows]``, see ``key_weights``.
    """
    losses = label_losses(logits, labels)
    likeliest = logits.argmax(-1)
    measured = WindowLoss(_total(losses), correct=_total(likeliest == labels))
    if reference is not None:
        measured = measured._replace(
            divergence=_total(divergences(reference, logits)),
            agreement=_total(likeliest == reference.argmax(-1)),
        )
    if key_weights is not None:
        measured = measured._replace(key_loss=_total(losses * key_weights.to(losses.device)))
    return measured


def _total(values: torch.Tensor) -> float:
    return float(values.cpu().double().sum())


def key_weights(long_losses: torch.Tensor, short_losses: torch.Tensor) -> torch.Tensor:
    """How much each label's loss tells of what is far away: ``[labels]``, with a mean of 1.

    A label's weight is what the long context takes off its loss, cut to 0 to 5 nats. LongPPL (arXiv 2410.23771)
    picks key tokens by the same gain, with a threshold; its training loss, LongCE, weighs by it.

    Args:
        long_losses: of each label with all tokens before it, nats, under all full.
        short_losses: with the nearest tokens only; equal to ``long_losses`` where there are no others.
    """
    gains = (short_losses - long_losses).clamp(0.0, _MOST_GAIN)
    mean = gains.mean()
    return torch.ones_like(gains) if float(mean) < _LEAST_MEAN_GAIN else gains / mean


def short_pieces(tokens: int) -> Iterator[tuple[int, int, int]]:
    """How a window is cut so that labels see a short context only: (start, first label, end) of each piece.

    ``short`` is an eighth of ``tokens``, and at least 16. A piece runs from ``start`` to ``end``; its labels from
    ``first`` on have ``short`` to ``2 * short`` tokens before them. The first ``2 * short`` tokens have no longer
    context than that, and need no piece.
    """
    short = max(_SHORTEST_CONTEXT, tokens // _SHORT_CONTEXTS_IN_WINDOW)
    for first in range(2 * short, tokens, short):
        yield first - short, first, min(first + short, tokens)
