"""Stored targets against the attention weights of transformers' own eager code, all heads and rows at once."""

import functools

import pytest
import torch
from random_models import DIMENSIONS, LAYERS, TOKEN_INDEX_FAMILIES, build, site_layers

from indexcache.dsa.checkpoint.families import FAMILIES
from indexcache.dsa.distil.segments import Segment, served_layers
from indexcache.dsa.distil.train import Settings, collect
from indexcache.dsa.long.backends import Backends, install
from indexcache.dsa.model.switch import Switch
from indexcache.errors import MeasurementError, ModelError, SettingError, WindowError

TOKENS, WIDTH = 40, DIMENSIONS["index_topk"]
WINDOWS = torch.randint(0, 4000, (3, TOKENS + 1), generator=torch.Generator().manual_seed(5)).tolist()
SETTINGS = Settings(rows=12, seed=3)


@functools.cache
def model_of(family):
    return build(family)


def eager_attention(model, ids, layers):
    """Head means ``[tokens, tokens]`` of whole softmax matrices, by layer; sparse states, but no key left out.

    The eager functions of transformers get the causal mask in place of the sparse one.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config()
    before, stock, means = config._attn_implementation, ALL_ATTENTION_FUNCTIONS.get_interface, {}
    causal = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)[None, None]

    def get_interface(name, default):
        def attend(module, *args, **kwargs):
            mask, kwargs["attention_mask"] = kwargs.pop("attention_mask", None), causal
            if mask is None:
                *tensors, mask = args
                args = tensors
            means[module.layer_idx] = default(module, *args, **kwargs)[1][0].mean(0)
            return stock(name, default)(module, *args, **(kwargs | {"attention_mask": mask}))

        return attend

    ALL_ATTENTION_FUNCTIONS.get_interface = get_interface
    config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids[:-1]]), use_cache=False)
    finally:
        del ALL_ATTENTION_FUNCTIONS.get_interface
        config._attn_implementation = before
    # Where heads have sinks, a part of their attention goes to no key.
    return {layer: means[layer] / means[layer].sum(-1, keepdim=True) for layer in layers}


def expected(family, segment, window):
    model, sites = model_of(family), site_layers(family)
    layers = served_layers(segment, sites)
    means = eager_attention(model, WINDOWS[window], layers)
    return torch.stack([means[layer] for layer in layers]).mean(0)


@pytest.mark.parametrize("backend", ["stock", "sparse"])
@pytest.mark.parametrize("family", TOKEN_INDEX_FAMILIES)
def test_targets_are_the_mean_attention_of_the_layers_served(family, backend):
    model, sites = model_of(family), site_layers(family)
    segment = Segment(1, len(sites))
    remove = install(model, Backends("chunked", "sparse")) if backend == "sparse" else lambda: None
    try:
        stored = collect(model, sites, WINDOWS, [segment], SETTINGS)
    finally:
        remove()
    for window in range(len(WINDOWS)):
        rows = stored.sites[1].windows[window].rows
        assert len(rows) == 12
        assert rows.min() >= WIDTH, "a query that has nothing to choose"
        torch.testing.assert_close(
            stored.target(segment, window), expected(family, segment, window)[rows], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("wrong", [Segment(1, 2), Segment(0, 4), Segment(1, 5), Segment(2, 4)])
def test_targets_of_other_layers_would_be_seen(wrong):
    """The comparison above tells a segment from its first layer alone and from its neighbours."""
    stored = collect(model_of("glm_moe_dsa"), range(LAYERS), WINDOWS, [Segment(1, 4)], SETTINGS)
    rows = stored.sites[1].windows[0].rows
    difference = stored.target(Segment(1, 4), 0) - expected("glm_moe_dsa", wrong, 0)[rows]
    assert difference.abs().max() > 1e-3, "a thousand times what the comparison lets pass"


def test_segments_that_overlap_get_what_each_would_get_alone():
    model, segments = model_of("glm_moe_dsa"), [Segment(0, 3), Segment(1, 6), Segment(1, 2)]
    together = collect(model, range(LAYERS), WINDOWS, segments, SETTINGS)
    for segment in segments:
        alone = collect(model, range(LAYERS), WINDOWS, [segment], SETTINGS)
        for window in range(len(WINDOWS)):
            torch.testing.assert_close(together.target(segment, window), alone.target(segment, window))
    with pytest.raises(SettingError, match="serves sites 0 to 3"):
        together.target(Segment(0, 4), 0)


def test_layers_that_share_in_the_checkpoint_count():
    types = ["full", "shared", "full", "full", "shared", "shared"]
    model = build("glm_moe_dsa", indexer_types=types)
    stored = collect(model, (0, 2, 3), WINDOWS, [Segment(0, 1), Segment(1, 3)], SETTINGS)
    for segment, layers in ((Segment(0, 1), (0, 1)), (Segment(1, 3), (2, 3, 4, 5))):
        means = eager_attention(model, WINDOWS[0], layers)
        reference = torch.stack(list(means.values())).mean(0)[stored.sites[segment.site].windows[0].rows]
        torch.testing.assert_close(stored.target(segment, 0), reference, rtol=1e-4, atol=1e-6)


def test_a_switch_may_be_on_the_model_and_stays():
    model = build("glm_moe_dsa")
    plain = collect(model, range(LAYERS), WINDOWS, [Segment(0, 6)], SETTINGS)
    switch = Switch(model, range(LAYERS))
    switched = collect(model, range(LAYERS), WINDOWS, [Segment(0, 6)], SETTINGS)
    torch.testing.assert_close(switched.target(Segment(0, 6), 1), plain.target(Segment(0, 6), 1), rtol=0, atol=0)
    switch.remove()


def test_rows_are_chosen_by_the_seed_and_differ_from_window_to_window():
    def rows(seed):
        stored = collect(
            model_of("glm_moe_dsa"), range(LAYERS), WINDOWS, [Segment(0, 1)], Settings(rows=12, seed=seed)
        )
        return [window.rows.tolist() for window in stored.sites[0].windows]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert len(set(map(tuple, rows(1)))) == 3


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(TOKEN_INDEX_FAMILIES)))
def test_other_families_are_refused_by_name(family):
    with pytest.raises(ModelError, match=f"{family}.* cannot be distilled"):
        collect(build(family), site_layers(family), WINDOWS, [Segment(0, 1)], SETTINGS)


def test_what_cannot_be_stored_or_learned_from_is_refused():
    model = model_of("glm_moe_dsa")
    with pytest.raises(MeasurementError, match="may be used on cpu"):
        collect(model, range(LAYERS), WINDOWS, [Segment(0, 6)], SETTINGS, memory=1000)
    with pytest.raises(WindowError, match="window 1 has 17 tokens"):
        collect(model, range(LAYERS), [WINDOWS[0], WINDOWS[1][:17]], [Segment(0, 6)], SETTINGS)
    with pytest.raises(SettingError, match="no window or no segment"):
        collect(model, range(LAYERS), WINDOWS, [], SETTINGS)
