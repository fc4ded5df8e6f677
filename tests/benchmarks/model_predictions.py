"""What a real model predicts under a pattern, as a server would compute it: in its dtype, or with a fault."""

import random
from contextlib import contextmanager

import torch
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa

from indexcache.pattern import FULL, SHARED


class ModelPredictions:
    """Log-probabilities of the next token by its id, from ids.

    Args:
        model: with ``model.indexcache``, as ``indexcache.load`` gives it.
        pattern: letters of its sites.
        half_split: the indexers rotate halves instead of neighbours, as engines do that lack a key.
    """

    def __init__(self, model, pattern, half_split=False):
        self._model, self._pattern, self._half_split = model, pattern, half_split

    @torch.no_grad()
    def __call__(self, tokens):
        self._model.indexcache.use(self._pattern)
        ids = torch.tensor([tokens])
        with _halves_rotated() if self._half_split else _as_it_is():
            logits = self._model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        return torch.log_softmax(logits.float(), dim=-1).numpy()


@contextmanager
def _as_it_is():
    yield


@contextmanager
def _halves_rotated():
    """Within it GLM's indexers, and nothing else of it, rotate the first half against the second."""
    name = "apply_rotary_pos_emb_interleave"
    usual = getattr(modeling_glm_moe_dsa, name)

    def rotated(query, key, cos, sin, position_ids=None, unsqueeze_dim=1):
        if unsqueeze_dim != 2:  # attention's
            return usual(query, key, cos, sin, position_ids, unsqueeze_dim)
        half = query.shape[-1] // 2
        cos, sin = (values[..., :half].unsqueeze(unsqueeze_dim) for values in (cos, sin))

        def turn(values):
            first, second = values[..., :half], values[..., half:]
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

        return turn(query), turn(key)

    setattr(modeling_glm_moe_dsa, name, rotated)
    try:
        yield
    finally:
        setattr(modeling_glm_moe_dsa, name, usual)


def neighbours(pattern, count, seed=0):
    """Patterns one swap away from ``pattern``: a full site and a shared one change places, drawn at random."""
    dice, drawn = random.Random(seed), []
    full = [site for site, letter in enumerate(pattern) if site and letter == FULL]
    shared = [site for site, letter in enumerate(pattern) if letter == SHARED]
    while len(drawn) < min(count, len(full) * len(shared)):
        letters = list(pattern)
        letters[dice.choice(full)], letters[dice.choice(shared)] = SHARED, FULL
        if (letters := "".join(letters)) not in drawn:
            drawn.append(letters)
    return drawn
