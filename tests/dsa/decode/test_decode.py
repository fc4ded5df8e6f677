"""Decode steps: the same step each time from a cache of random keys, shared layers without their indexers."""

import copy

import pytest
import torch
from random_models import FAMILIES, TOKEN_INDEX_FAMILIES, build, site_layers

from indexcache.dsa.caches import CacheArgument, cache_in
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.chunks import out_of_memory
from indexcache.dsa.decode import busy, cache
from indexcache.dsa.decode.cache import FilledCache
from indexcache.dsa.decode.clock import DecodeClock
from indexcache.dsa.long.backends import Backends, install
from indexcache.pattern import Pattern

IN_PLACE = ["deepseek_v32", "dots3_note", "glm5_next"]


def ids_of(tokens, batch=1):
    return torch.randint(0, 4000, (batch, tokens), generator=torch.Generator().manual_seed(5))


def runner(model):
    name = CacheArgument(model.forward, "the model").name

    def run(ids, held):
        given = {} if held is None else {name: held}
        return cache_in(model(input_ids=ids, use_cache=True, **given))

    def logits(ids, held):
        return model(input_ids=ids, use_cache=True, **{name: held}).logits

    return run, logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_timed_all_full_and_shared(family):
    model, sites = build(family), site_layers(family)
    if family in TOKEN_INDEX_FAMILIES:
        install(model, Backends("chunked", "sparse"))
    calls = dict.fromkeys(sites, 0)
    for layer, indexer in find_indexers(model)[1].items():

        def counted(*args, own=indexer.forward, layer=layer, **kwargs):
            calls[layer] += 1
            return own(*args, **kwargs)

        indexer.forward = counted
    clock = DecodeClock(model, sites, family in TOKEN_INDEX_FAMILIES)
    patterns = [Pattern.all_full(len(sites)), Pattern.from_full(len(sites), [0])]
    full, shared = clock.time(patterns, ids_of(40)[0].tolist(), batch=2, repeats=2, steps=1)
    assert 0 < full.least <= full.seconds <= full.most
    assert 0 <= shared.indexer_share < 1
    # Both patterns run the first site; the others only all full: one turn that warms up, and two runs.
    assert calls[sites[0]] - calls[sites[-1]] == 3, "shared sites ran their indexers"
    clock.close()


@pytest.mark.parametrize("family", IN_PLACE)
def test_a_step_in_place_gives_what_transformers_own_cache_gives(family):
    model = build(family)
    run, logits = runner(model)
    with torch.inference_mode():
        filled = FilledCache(run, ids_of(50, batch=2), latent=family == "deepseek_v32")
        assert filled.is_random
        token = ids_of(1, batch=2)
        own = copy.deepcopy(filled.rewind())
        for layer in own.layers:
            for name in ("update", "update_indexer"):
                layer.__dict__.pop(name, None)
        wanted = logits(token, own)
        first = logits(token, filled.rewind())
        again = logits(token, filled.rewind())
    assert torch.equal(first, wanted)
    if "LinearAttentionLayer" not in {type(layer).__name__ for layer in own.layers}:
        assert torch.equal(again, wanted), "a step left something behind"


def test_a_shared_site_writes_no_index_keys():
    model, run = build("glm_moe_dsa"), None
    sites = site_layers("glm_moe_dsa")
    clock = DecodeClock(model, sites, latent=False)
    run, _ = runner(model)
    with torch.inference_mode():
        filled = FilledCache(run, ids_of(30), latent=False)
        clock._switch.use(Pattern.from_full(len(sites), [0]))
        held = filled.rewind()
        run(ids_of(1), held)
    lengths = [layer.indexer_keys.shape[1] for layer in held.layers]
    assert lengths == [31] + [30] * (len(sites) - 1)
    assert {layer.keys.shape[2] for layer in held.layers} == {31}, "keys are written by every layer"


def test_a_cache_that_does_not_fit_is_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda device: 1000)
    run, _ = runner(build("glm_moe_dsa"))
    with torch.inference_mode(), pytest.raises(MemoryError) as error:
        FilledCache(run, ids_of(30), latent=False)
    assert out_of_memory(error.value)


def test_others_on_the_machine_are_told(monkeypatch):
    seconds = iter([100.0, 101.0, 100.0, 100.0])
    clock = iter([0.0, 1.0, 0.0, 1.0])
    monkeypatch.setattr(busy, "_others_seconds", lambda: next(seconds))
    monkeypatch.setattr(busy.time, "monotonic", lambda: next(clock))
    assert "other programs kept 1.0 of" in busy.watch(torch.device("cpu"))()
    assert busy.watch(torch.device("cpu"))() == ""
