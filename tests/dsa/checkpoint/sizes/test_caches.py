"""What a token leaves in caches, and what a decode step reads, held against the models themselves."""

import pytest
import torch
from random_models import FAMILIES, build

from indexcache.dsa.caches import cache_in
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sizes.caches import index_key_values, step_reads

TOKENS = 40
NOT_KNOWN = {"glm5_next"}


def index_keys(layer):
    """The index keys that one layer of a cache holds."""
    compressed = getattr(layer, "compressed_kv", {}).get("indexer")
    kept = (getattr(layer, "indexer_keys", None), getattr(layer, "idx_keys", None), compressed)
    return next((keys for keys in kept if keys is not None and keys.numel()), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_index_keys_are_as_many_as_the_cache_holds(family, checkpoints):
    checkpoint = open_checkpoint(str(checkpoints[family]))
    values = index_key_values(checkpoint)
    if family in NOT_KNOWN:
        assert values is None
        return
    ids = torch.arange(1, TOKENS + 1)[None]
    with torch.inference_mode():
        held = cache_in(build(family)(input_ids=ids, use_cache=True))
    numbers = [index_keys(held.layers[layer]).numel() for layer in checkpoint.site_layers]
    assert numbers == [value * TOKENS for value in values]


def test_a_step_reads_weights_keys_and_index_keys_once(checkpoints):
    checkpoint, model = open_checkpoint(str(checkpoints["deepseek_v32"])), build("deepseek_v32")
    sites = checkpoint.site_layers
    context, width = 100, checkpoint.selection_width
    read = step_reads(checkpoint, context, 1, sites, 4, is_sparse=True)
    layers = len(model.model.layers)
    text = checkpoint.text
    experts = sum(w.numel() for name, w in model.named_parameters() if ".experts." in name)
    others = sum(w.numel() for w in model.parameters()) - experts - text.vocab_size * text.hidden_size
    others -= text.hidden_size  # the last norm
    reached = experts * text.num_experts_per_tok / text.n_routed_experts
    assert read.weights == 4 * (others + reached)
    assert read.keys == 4 * layers * width * (text.kv_lora_rank + text.qk_rope_head_dim)
    assert read.index_keys == 4 * len(sites) * context * text.index_head_dim
    stock = step_reads(checkpoint, context, 1, sites, 4, is_sparse=False)
    assert stock.keys == read.keys * context // width
    one = step_reads(checkpoint, context, 1, sites[:1], 4, is_sparse=True)
    assert one.index_keys * len(sites) == read.index_keys
    indexers = sum(w.numel() for name, w in model.named_parameters() if ".indexer." in name)
    assert read.weights - one.weights == 4 * indexers * (len(sites) - 1) / len(sites)
    many = step_reads(checkpoint, context, 1000, sites, 4, is_sparse=True)
    assert many.weights == pytest.approx(4 * (others + experts)), "a large batch reaches every expert"
    assert many.index_keys == 1000 * read.index_keys


def test_what_is_not_known_is_none(checkpoints):
    checkpoint = open_checkpoint(str(checkpoints["minimax_m3_vl"]))
    assert step_reads(checkpoint, 100, 1, checkpoint.site_layers, 2, is_sparse=True) is None
