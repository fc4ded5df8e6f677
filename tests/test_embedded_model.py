"""The embedded trained model: its losses mean something, and a searched pattern beats uniform."""

import pytest
import torch
from random_models import EMBEDDED, measure

from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.load import load_model
from indexcache.dsa.model.losses import PatternLosses
from indexcache.pattern import Pattern
from indexcache.search.losses import Evaluation, paired_difference

# What ``indexcache search --recipe tiny`` finds, here on other windows.
SEARCHED = Pattern("FFFSSSSSSSFSSSSS")
FULL, UNIFORM = Pattern.all_full(16), Pattern.uniform(16, 4)
LENGTH = 512


@pytest.fixture(scope="module")
def windows(embedded_text, tokenizer):
    return pack(embedded_text, tokenizer, WindowRequest(LENGTH, 6, 0, seed=11)).calibration.tolist()


def evaluate(patterns, windows, **config):
    model = load_model(open_checkpoint(str(EMBEDDED)), "float32")
    for module in model.modules():
        for name, value in config.items():
            if hasattr(module, name):
                setattr(module, name, value)
    losses = PatternLosses(model, range(16))
    sums = [measure(losses, patterns, window) for window in windows]
    return [
        Evaluation(pattern, tuple(row[index] / (LENGTH - 1) for row in sums))
        for index, pattern in enumerate(patterns)
    ]


def test_uniform_costs_at_least_two_and_a_half_times_the_searched_pattern(windows):
    full, searched, uniform = evaluate([FULL, SEARCHED, UNIFORM], windows)
    greedy = paired_difference(searched, full).delta
    assert full.loss < 4.0, "the model has learned nothing"
    assert 0 < greedy < 0.2
    assert paired_difference(uniform, full).delta >= 2.5 * greedy


def test_sparse_attention_costs_little_over_dense(windows):
    """Dense is the same model with a selection as wide as the window."""
    sparse = evaluate([FULL], windows[:4])[0]
    dense = evaluate([FULL], windows[:4], index_topk=LENGTH)[0]
    assert sparse.loss != dense.loss
    assert paired_difference(sparse, dense).delta <= 0.03


def test_the_folder_is_small_and_needs_no_code_of_ours():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 12_000_000
    assert load_model(open_checkpoint(str(EMBEDDED))).dtype == torch.bfloat16
