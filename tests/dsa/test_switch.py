"""The switch against stock transformers: bit for bit, on every family."""

import itertools

import pytest
import torch
from random_models import FAMILIES, build

from indexcache.dsa.switch import Switch
from indexcache.errors import ModelError
from indexcache.pattern import Pattern, indexer_types

LAYERS = 6
PATTERNS = [Pattern("F" + "".join(tail)) for tail in itertools.product("FS", repeat=LAYERS - 1)]


def tokens(length=64, rows=1, seed=5):
    return torch.randint(0, 4096, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_all_full_is_the_untouched_model_bit_for_bit(self, family):
        model, ids = build(family), tokens(rows=2)
        stock = logits(model, ids)
        switch = Switch(model, range(LAYERS))
        assert torch.equal(logits(model, ids), stock)
        switch.use(Pattern.all_full(LAYERS))
        assert torch.equal(logits(model, ids), stock)

    def test_switching_back_and_removing_restore_the_model(self, family):
        model, ids = build(family), tokens()
        stock = logits(model, ids)
        switch = Switch(model, range(LAYERS))
        switch.use(Pattern("FSSSSS"))
        assert not torch.equal(logits(model, ids), stock)
        switch.use(Pattern.all_full(LAYERS))
        assert torch.equal(logits(model, ids), stock)
        switch.use(Pattern("FSSSSS"))
        switch.remove()
        assert torch.equal(logits(model, ids), stock)
        assert not any("forward" in module.__dict__ for module in model.modules())

    def test_every_single_flip_changes_the_result(self, family):
        model, ids = build(family), tokens()
        switch = Switch(model, range(LAYERS))
        stock = logits(model, ids)
        for site in range(1, LAYERS):
            switch.use(Pattern.all_full(LAYERS).share(site))
            assert not torch.equal(logits(model, ids), stock), f"sharing site {site} changed nothing"

    def test_a_shared_site_attends_to_what_its_source_selected(self, family, monkeypatch):
        model, ids = build(family), tokens()
        visible = []

        def watch(module, args, kwargs, output):
            visible.append(output.clone())

        switch = Switch(model, range(LAYERS))
        for layer in model.model.layers:
            layer.self_attn.indexer.register_forward_hook(watch, with_kwargs=True)
        pattern = Pattern("FSSFSF")
        switch.use(pattern)
        logits(model, ids)
        for site, source in enumerate(pattern.sources()):
            assert torch.equal(visible[site], visible[source])
        assert not torch.equal(visible[0], visible[3]), "two full sites chose the same keys"

    def test_cached_decoding_equals_a_full_forward(self, family):
        model, ids = build(family), tokens(length=40)
        Switch(model, range(LAYERS)).use(Pattern("FSFSSF"))
        whole = logits(model, ids)
        with torch.inference_mode():
            out = model(input_ids=ids[:, :30], use_cache=True)
            pieces = [out.logits]
            for position in range(30, 40):
                out = model(input_ids=ids[:, position : position + 1], past_key_values=out.past_key_values)
                pieces.append(out.logits)
        assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_switch_equals_native_sharing(pattern):
    """transformers' own ``indexer_types`` on the same weights is the oracle."""
    model, ids = build("glm_moe_dsa"), tokens()
    native = build("glm_moe_dsa", indexer_types=indexer_types(str(pattern)))
    native.load_state_dict(model.state_dict(), strict=False)
    Switch(model, range(LAYERS)).use(pattern)
    assert torch.equal(logits(model, ids), logits(native, ids))


def test_a_checkpoint_that_shares_already_can_share_more():
    model, ids = build("glm_moe_dsa", indexer_types=indexer_types("FFSFSF")), tokens()
    native = build("glm_moe_dsa", indexer_types=indexer_types("FFSSSF"))
    native.load_state_dict(model.state_dict(), strict=False)
    Switch(model, (0, 1, 3, 5)).use(Pattern("FFSF"))
    assert torch.equal(logits(model, ids), logits(native, ids))


def test_sites_that_the_model_does_not_have_are_refused():
    model = build("glm_moe_dsa", indexer_types=indexer_types("FFSFSF"))
    with pytest.raises(ModelError, match=r"0-5, but the loaded model has them in 0-1, 3, 5"):
        Switch(model, range(LAYERS))


def test_a_pattern_of_another_length_is_refused():
    with pytest.raises(ModelError, match="5 letters for 6 sites"):
        Switch(build("glm_moe_dsa"), range(LAYERS)).use(Pattern("FFFFF"))


def test_a_selection_follows_the_hidden_states_to_their_device():
    model = build("glm_moe_dsa")
    switch = Switch(model, range(LAYERS))
    switch.selection = torch.zeros(1, 4, 2, dtype=torch.int32)
    switch.use(Pattern("FSFFFF"))
    found = model.model.layers[1].self_attn.indexer(torch.empty(1, 4, 64, device="meta"))
    assert found.device.type == "meta"


def test_indexers_in_two_stacks_are_refused():
    model = build("glm_moe_dsa")
    model.other = build("glm_moe_dsa").model
    with pytest.raises(ModelError, match="several stacks"):
        Switch(model, range(LAYERS))


def test_forgetting_drops_the_selection():
    switch = Switch(build("glm_moe_dsa"), range(LAYERS))
    switch.selection = torch.zeros(1)
    switch.forget()
    assert switch.selection is None
