"""A model is held to what word frequencies and chance predict, and the refusal says which it does not beat."""

import math

import pytest
import torch
from random_models import build

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checks.competence import Guess, check_competence
from indexcache.errors import ModelError

IDS = list(range(7, 71))


def refusal(model, checkpoint, loss):
    with pytest.raises(ModelError, match="no better than word frequencies do") as caught:
        check_competence(model, checkpoint, Guess(IDS, loss))
    return caught.value


@pytest.fixture
def checkpoint(checkpoints):
    return open_checkpoint(str(checkpoints["glm_moe_dsa"]))


def test_a_random_model_is_no_better_than_chance(checkpoint):
    error = refusal(build("glm_moe_dsa"), checkpoint, loss=6.0)
    assert f"theirs 6.00, chance's {math.log(4096):.2f} (ln of its 4096 tokens)" in str(error)
    assert "--untrained leaves this check out, --no-selfcheck all of them" in error.hint


def test_one_that_beats_chance_and_not_frequencies_is_told_of_these_alone(checkpoint):
    model, seen = build("glm_moe_dsa"), torch.tensor(IDS)
    # All logits are 0 but those of the tokens that come, which are then e times as likely.
    model.lm_head.register_forward_hook(lambda module, args, logits: (logits * 0).index_fill(-1, seen, 1.0))
    error = refusal(model, checkpoint, loss=6.0)
    assert "its loss is 7.34 nats a token, theirs 6.00" in str(error)  # ln(4032 + 64 e) - 1
    assert "chance" not in str(error)


def test_a_model_that_beats_both_passes(checkpoint):
    check_competence(build("glm_moe_dsa"), checkpoint, Guess(IDS, loss=1e9))
