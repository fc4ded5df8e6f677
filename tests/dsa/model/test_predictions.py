"""Next-token predictions of patterns: those of the model itself, at any positions, in one sweep."""

import numpy as np
import pytest
import torch
from random_models import build

from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.pattern import Pattern

LAYERS, TOP = 6, 5
PATTERNS = [Pattern("FSFSSS"), Pattern("FFFFFF"), Pattern("FSSSSS")]
POSITIONS = (3, 17, 20, 38)


def windows(count):
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 4096, (40,), generator=draw).tolist() for _ in range(count)]


@pytest.mark.parametrize("family", ["glm_moe_dsa", "deepseek_v32"])
def test_predictions_are_those_of_the_model(family):
    model, asked = build(family), windows(2)
    losses = PatternLosses(model, range(LAYERS), blind=16)
    given = Evaluator(losses, {}).predictions(PATTERNS, asked, POSITIONS, TOP)
    assert losses.switch.selection is None
    for ids, predictions in zip(asked, given, strict=True):
        for number, pattern in enumerate(PATTERNS):
            losses.switch.use(pattern)
            with torch.inference_mode():
                exact = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            losses.switch.use(PATTERNS[1])
            for row, position in enumerate(POSITIONS):
                tokens = predictions.tokens[row][predictions.tokens[row] >= 0]
                assert set(exact[position].topk(TOP).indices.tolist()) <= set(tokens.tolist())
                assert len(set(tokens.tolist())) == len(tokens), "a candidate stands there twice"
                expected = exact[position][torch.tensor(tokens)].numpy()
                assert np.abs(expected - predictions.logprobs[row, : len(tokens), number]).max() < 1e-5
        assert np.isnan(predictions.logprobs[predictions.tokens < 0]).all()


def test_what_patterns_have_in_common_runs_once():
    losses = PatternLosses(build("glm_moe_dsa"), range(LAYERS))
    losses.predictions([Pattern("FFFFFF"), Pattern("FFFFFS")], [Window(0, windows(1)[0])], POSITIONS, TOP)
    assert losses.layer_runs == LAYERS + 1
