"""The loss on a window of guessing its tokens by how often they occur elsewhere, which a trained model beats."""

from __future__ import annotations

import math

import numpy as np

from .windows import TokenArray

# Of each count, what is kept for tokens that were not seen (absolute discounting).
_DISCOUNT = 0.75


def unigram_loss(labels: TokenArray, others: TokenArray, vocabulary: int) -> float:
    """Mean loss in nats on ``labels`` of a guess by the frequencies of ``others``; at most ``ln(vocabulary)``.

    A token that occurs n times among N others, k of them distinct, is guessed with the probability
    (max(n - d, 0) + d * k / vocabulary) / N. As the labels are not among the others, few of these make the
    guess worse and never better than frequencies are: a model is then held to less.

    Args:
        labels: token ids ``[labels]`` to be guessed.
        others: token ids of any shape.
        vocabulary: how many ids there are.
    """
    uniform = math.log(vocabulary)
    if not others.size or not labels.size:
        return uniform
    counts = np.bincount(others.ravel(), minlength=vocabulary)
    # [vocabulary], in tokens: what every count loses is shared evenly among all ids, so the sum stays N.
    masses = np.maximum(counts - _DISCOUNT, 0) + _DISCOUNT * np.count_nonzero(counts) / vocabulary
    return min(uniform, float(-np.log(masses[labels] / others.size).mean()))
