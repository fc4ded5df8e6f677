"""Models that stay under a pattern: cached decoding in every family, generate, and caches that are refused."""

import copy

import pytest
import torch
from random_models import FAMILIES, LAYERS, build, measure, site_layers

from indexcache.dsa.checkpoint.families import FAMILIES as TABLE
from indexcache.dsa.model.applied import AppliedPattern
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.switch import Switch
from indexcache.errors import ModelError, PatternError
from indexcache.pattern import Pattern, indexer_types

PROMPT, NEW = 48, 12
# In transformers 5.23 a selection of glm5_next cannot cross a linear layer.
NATIVE = [name for name, family in TABLE.items() if family.passes_selection and name != "glm5_next"]


def tokens(count, rows=1, seed=1):
    return torch.randint(1, 4000, (rows, count), generator=torch.Generator().manual_seed(seed))


def thinned(sites):
    """Every third site full."""
    return Pattern.from_full(sites, range(0, sites, 3))


@torch.inference_mode()
def whole(model, ids):
    """Logits of ``ids`` in one forward without a cache."""
    return model(input_ids=ids, use_cache=False).logits


@torch.inference_mode()
def cached(model, ids):
    """The same with the prompt first and then token by token."""
    out = model(input_ids=ids[:, :PROMPT], use_cache=True)
    logits = [out.logits]
    for place in range(PROMPT, ids.shape[1]):
        out = model(input_ids=ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def prefilled(model, ids):
    return model(input_ids=ids, use_cache=True).past_key_values


@torch.inference_mode()
def go_on(model, cache):
    return model(input_ids=tokens(1), past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_a_forward_over_everything(family):
    model, sites, ids = build(family), site_layers(family), tokens(PROMPT + NEW)
    stock = whole(model, ids)
    torch.testing.assert_close(cached(model, ids), stock, rtol=1e-3, atol=1e-3)  # or the oracle says nothing
    AppliedPattern(model, sites, thinned(len(sites)))
    planned = whole(model, ids)
    assert not torch.equal(planned, stock)
    torch.testing.assert_close(cached(model, ids), planned, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_full_decodes_as_stock_bit_for_bit_and_removal_leaves_nothing(family):
    model, sites, ids = build(family), site_layers(family), tokens(PROMPT + NEW)
    stock = cached(model, ids)
    applied = AppliedPattern(model, sites, Pattern.all_full(len(sites)))
    assert torch.equal(cached(model, ids), stock)
    applied.use(thinned(len(sites)))
    assert not torch.equal(cached(model, ids), stock)
    applied.remove()
    assert torch.equal(cached(model, ids), stock)


@pytest.mark.parametrize("family", NATIVE)
def test_decoding_equals_transformers_own_sharing(family):
    sites = site_layers(family)
    pattern = thinned(len(sites))
    shares = build(family, indexer_types=indexer_types(pattern.over_layers(sites, LAYERS)))
    switched = build(family)
    shares.load_state_dict(switched.state_dict(), strict=False)
    AppliedPattern(switched, sites, pattern)
    ids = tokens(PROMPT + NEW)
    assert torch.equal(cached(switched, ids), cached(shares, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_takes_the_token_that_a_forward_over_everything_prefers(family):
    model, sites, ids = build(family), site_layers(family), tokens(PROMPT)
    AppliedPattern(model, sites, thinned(len(sites)))
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    logits = whole(model, out)[0, PROMPT - 1 : -1]
    chosen = logits.gather(1, out[0, PROMPT:, None])[:, 0]
    # The preferred token, or one that rounding cannot tell from it.
    assert (logits.amax(-1) - chosen).max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pattern_changed_with_a_live_cache_is_refused(family):
    model, sites = build(family), site_layers(family)
    applied = AppliedPattern(model, sites, thinned(len(sites)))
    cache = prefilled(model, tokens(PROMPT))
    applied.use(Pattern.all_full(len(sites)))
    with pytest.raises(
        ModelError, match=f"filled under the pattern {thinned(len(sites))}; the model now runs under F"
    ):
        go_on(model, cache)
    assert cache.get_seq_length() == PROMPT, "a refused forward must not write into the cache"
    applied.use(thinned(len(sites)))
    go_on(model, cache)


class TestCaches:
    @pytest.fixture
    def model(self):
        return build("deepseek_v32")

    @pytest.fixture
    def applied(self, model):
        return AppliedPattern(model, range(LAYERS), Pattern("FFSFSS"))

    def test_the_same_pattern_goes_on(self, model, applied):
        cache = prefilled(model, tokens(PROMPT))
        applied.use(Pattern("FFSFSS"))
        go_on(model, cache)
        assert cache.get_seq_length() == PROMPT + 1

    def test_a_copy_of_a_cache_is_known_too(self, model, applied):
        cache = copy.deepcopy(prefilled(model, tokens(PROMPT)))
        applied.use(Pattern("FSSSSS"))
        with pytest.raises(ModelError, match="FFSFSS"):
            go_on(model, cache)

    def test_a_cache_given_empty_is_marked_before_it_is_filled(self, model, applied):
        import transformers

        cache = transformers.DynamicCache(config=model.config)
        with torch.inference_mode():
            model.model(tokens(PROMPT), None, None, cache)  # by position, and around the head
        applied.use(Pattern("FSSSSS"))
        with pytest.raises(ModelError, match="FFSFSS"):
            go_on(model, cache)

    def test_a_cache_that_was_emptied_takes_another_pattern(self, model, applied):
        cache = prefilled(model, tokens(PROMPT))
        cache.reset()
        applied.use(Pattern("FSSSSS"))
        go_on(model, cache)

    def test_a_cache_from_before_is_refused(self, model):
        cache = prefilled(model, tokens(PROMPT))
        AppliedPattern(model, range(LAYERS), Pattern("FFSFSS"))
        with pytest.raises(ModelError, match="filled without a pattern"):
            go_on(model, cache)

    def test_what_went_on_without_the_pattern_is_refused_under_it(self, model, applied):
        cache = prefilled(model, tokens(PROMPT))
        applied.remove()
        go_on(model, cache)
        AppliedPattern(model, range(LAYERS), Pattern("FFSFSS"))
        with pytest.raises(ModelError, match="went on without it"):
            go_on(model, cache)

    def test_it_holds_no_selection_between_forwards(self, model, applied):
        prefilled(model, tokens(PROMPT))
        assert applied._switch.selection is None


def test_padded_rows_and_beams_decode_as_alone():
    model = build("glm_moe_dsa")
    AppliedPattern(model, range(LAYERS), Pattern("FSSFSS"))
    long, short = tokens(PROMPT), tokens(PROMPT - 20, seed=2)
    ids = torch.cat([long, torch.cat([torch.zeros(1, 20, dtype=torch.long), short], 1)])
    seen = torch.ones_like(ids)
    seen[1, :20] = 0
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": 2}
    together = model.generate(ids, attention_mask=seen, **options)
    for row, alone in enumerate((long, short)):
        out = model.generate(alone, attention_mask=torch.ones_like(alone), **options)
        assert together[row, PROMPT:].tolist() == out[0, alone.shape[1] :].tolist()


class TestTheModelItself:
    @pytest.fixture
    def model(self):
        return build("glm_moe_dsa")

    def test_a_copy_has_a_pattern_and_weights_of_its_own(self, model):
        ids = tokens(PROMPT)
        stock = whole(model, ids)
        AppliedPattern(model, range(LAYERS), Pattern("FSSSSS"))
        planned, twin = whole(model, ids), copy.deepcopy(model)
        twin.indexcache.use(Pattern("FFFFFF"))
        assert torch.equal(whole(twin, ids), stock)
        assert torch.equal(whole(model, ids), planned)
        twin.indexcache.use(Pattern("FSSSSS"))
        twin.model.layers[0].self_attn.indexer.wk.weight.data.normal_(generator=torch.Generator().manual_seed(5))
        assert not torch.equal(whole(twin, ids), planned)
        assert torch.equal(whole(model, ids), planned)

    def test_removed_twice_is_removed_once(self, model):
        applied = AppliedPattern(model, range(LAYERS), Pattern("FSSSSS"))
        applied.remove()
        losses = PatternLosses(model, range(LAYERS))
        applied.remove()
        assert len(set(measure(losses, [Pattern("FSSSSS"), Pattern("FFFFFF")], tokens(PROMPT)[0].tolist()))) == 2
        assert not hasattr(model, "indexcache")
        with pytest.raises(ModelError, match="was removed"):
            applied.use(Pattern("FFFFFF"))

    def test_a_plan_of_another_layout_leaves_the_one_in_force(self, model):
        applied = AppliedPattern(model, range(LAYERS), Pattern("FSSSSS"))
        planned = whole(model, tokens(PROMPT))
        with pytest.raises(ModelError, match="expected in layers 0-1"):
            AppliedPattern(model, range(2), Pattern("FS"))
        assert model.indexcache is applied
        assert torch.equal(whole(model, tokens(PROMPT)), planned)

    def test_a_pattern_may_be_spelled_out(self, model):
        applied = AppliedPattern(model, range(LAYERS), Pattern("FSSSSS"))
        applied.use("FFSSSS")
        assert applied.pattern == Pattern("FFSSSS")
        with pytest.raises(PatternError):
            applied.use("SF")
        assert applied.pattern == Pattern("FFSSSS")

    def test_what_was_put_on_later_is_removed_first(self, model):
        applied = AppliedPattern(model, range(LAYERS), Pattern("FSSSSS"))
        later = Switch(model, range(LAYERS))
        with pytest.raises(ModelError, match="remove that first"):
            applied.remove()
        later.remove()
        applied.remove()
        assert "forward" not in model.model.layers[0].self_attn.indexer.__dict__

    def test_gradient_checkpointing_is_refused(self, model):
        AppliedPattern(model, range(LAYERS), Pattern("FSSSSF"))
        model.requires_grad_(True).train()
        model(input_ids=tokens(PROMPT), use_cache=False)
        model.gradient_checkpointing_enable()
        with pytest.raises(ModelError, match="gradient checkpointing"):
            model(input_ids=tokens(PROMPT), use_cache=False)
        model.eval()(input_ids=tokens(PROMPT), use_cache=False)
