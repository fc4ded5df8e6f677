"""The embedded trained model: its losses are the frozen ones, and a searched pattern beats uniform."""

import golden_losses
import pytest
import torch
from golden_losses import LENGTH, PATTERNS
from random_models import EMBEDDED, load_checkpoint

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.search.losses import Evaluation, paired_difference

FULL = PATTERNS["full"]


@pytest.fixture(scope="module")
def windows():
    return golden_losses.windows()


@pytest.fixture(scope="module")
def losses(windows):
    """Losses by the pattern's name, one a window; measured once."""
    return dict(zip(PATTERNS, golden_losses.measured(list(PATTERNS.values()), windows), strict=True))


def evaluation(name, losses):
    return Evaluation.of_losses(PATTERNS[name], tuple(losses[name]))


def test_losses_are_the_frozen_ones(losses):
    """To the last bit on the processor and with the libraries that the file names, elsewhere nearly."""
    assert not golden_losses.differences(losses)


def test_a_loss_that_moved_is_seen(losses):
    moved = losses | {"searched": [losses["searched"][0] * (1 + 1e-4), *losses["searched"][1:]]}
    assert [line.split(":")[0] for line in golden_losses.differences(moved)] == ["searched, window 0"]


def test_uniform_costs_at_least_two_and_a_half_times_the_searched_pattern(losses):
    full, searched, uniform = (evaluation(name, losses) for name in ("full", "searched", "uniform"))
    greedy = paired_difference(searched, full).delta
    assert full.loss < 4.0, "the model has learned nothing"
    assert 0 < greedy < 0.2
    assert paired_difference(uniform, full).delta >= 2.5 * greedy


def test_sparse_attention_costs_little_over_dense(losses, windows):
    """Dense is the same model with a selection as wide as the window."""
    sparse = Evaluation.of_losses(FULL, tuple(losses["full"]))
    dense = Evaluation.of_losses(FULL, tuple(golden_losses.measured([FULL], windows, index_topk=LENGTH)[0]))
    assert sparse.loss != dense.loss
    assert paired_difference(sparse, dense).delta <= 0.03


def test_the_folder_is_small_and_needs_no_code_of_ours():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 16_000_000
    assert load_checkpoint(open_checkpoint(str(EMBEDDED))).dtype == torch.bfloat16
