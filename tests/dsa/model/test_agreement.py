"""Selection overlap against counting by hand."""

import pytest
import torch
from random_models import build

from indexcache.dsa.model.agreement import selection_overlap
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window

LAYERS, TOPK, LENGTH = 6, 16, 50


def test_overlap_is_the_share_of_keys_selected_by_both():
    losses = PatternLosses(build("glm_moe_dsa"), range(LAYERS))
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(0, 4096, (LENGTH,), generator=generator).tolist() for _ in range(2)]
    counted = [[0] * LAYERS for _ in range(LAYERS)]
    for ids in windows:
        selections = [site[0].tolist() for site in losses.selections([Window(0, ids)])[0]]
        for a in range(LAYERS):
            for b in range(LAYERS):
                rows = range(TOPK, LENGTH - 1)
                counted[a][b] += sum(len({*selections[a][row]} & {*selections[b][row]}) for row in rows)
    shares = selection_overlap(losses, windows, TOPK)
    everything = 2 * (LENGTH - 1 - TOPK) * TOPK
    for a in range(LAYERS):
        assert shares[a] == pytest.approx([count / everything for count in counted[a]])
        assert shares[a][a] == 1.0
