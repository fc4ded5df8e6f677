"""Computed times of layers against those that were timed on an H100."""

import json
from pathlib import Path

import published_checkpoints
import pytest

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sizes.count import layer_sizes
from indexcache.dsa.checkpoint.sizes.work import TIMED, computed_seconds, layer_times

THIRTY = Path(__file__).parents[3] / "benchmarks" / "glm_moe_dsa_30b" / "config.json"
MODELS = {
    "DeepSeek-V3.2": lambda: json.loads((published_checkpoints.CONFIGS / "deepseek_v32.json").read_text()),
    "GLM-5": published_checkpoints.glm_5,
    "a 30B of 47 layers": lambda: json.loads(THIRTY.read_text()),
}


@pytest.fixture
def opened(tmp_path):
    def run(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return open_checkpoint(str(tmp_path))

    return run


def expert_layer(checkpoint):
    return next(layer for layer, size in enumerate(layer_sizes(checkpoint)) if size.idle)


@pytest.mark.parametrize("timed", TIMED, ids=lambda timed: timed.model)
def test_the_formula_is_near_what_was_timed(timed, opened):
    checkpoint = opened(MODELS[timed.model]())
    layer = expert_layer(checkpoint)
    for tokens, seconds in timed.seconds.items():
        computed = computed_seconds(checkpoint, layer, layer_sizes(checkpoint)[layer], tokens)
        assert computed == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(("model", "dense"), [("DeepSeek-V3.2", 0.180), ("GLM-5", 0.109)])
def test_dense_layers_are_near_what_was_timed_though_no_table_has_them(model, dense, opened):
    times = layer_times(opened(MODELS[model]()), 32_768)
    assert times.seconds[0][0] == pytest.approx(dense, rel=0.1)


def test_what_was_timed_is_given_as_it_was(opened):
    checkpoint = opened(MODELS["DeepSeek-V3.2"]())
    times = layer_times(checkpoint, 32_768)
    assert times.origin == "measured"
    assert times.seconds[expert_layer(checkpoint)] == pytest.approx((0.211, 0.184))


def test_another_length_is_scaled_from_the_nearest(opened):
    checkpoint = opened(MODELS["a 30B of 47 layers"]())
    times = layer_times(checkpoint, 16_384)
    assert times.origin == "scaled"
    # 8 windows of 16,384 tokens through 12 such layers took 2.41 s, a head of 155,000 tokens included.
    assert 0.9 * 2.41 / 96 < times.seconds[-1][0] < 2.41 / 96
    longer = layer_times(checkpoint, 65_536)
    # Indexers grow with the square of the tokens, the rest with the tokens.
    assert 2 < longer.seconds[-1][1] / layer_times(checkpoint, 32_768).seconds[-1][1] < 2.1
    assert longer.seconds[-1][0] - longer.seconds[-1][1] > 3.5 * (0.0551 - 0.0380)


def test_of_a_family_that_nobody_timed_it_is_computed(opened):
    config = json.loads((published_checkpoints.CONFIGS / "dots3_note.json").read_text())
    times = layer_times(opened(config), 32_768)
    assert times.origin == "computed"
    assert all(0 < shared <= full < 1 for full, shared in times.seconds)
