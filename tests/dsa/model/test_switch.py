"""The switch against stock transformers' own sharing, and what it refuses."""

import itertools

import pytest
import torch
from random_models import build

from indexcache.dsa.model.switch import Switch
from indexcache.errors import ModelError
from indexcache.pattern import Pattern, indexer_types

LAYERS = 6
PATTERNS = [Pattern("F" + "".join(tail)) for tail in itertools.product("FS", repeat=LAYERS - 1)]


def tokens(length=64, rows=1, seed=5):
    return torch.randint(0, 4096, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.reliability("R15")
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_switch_equals_native_sharing(pattern):
    """transformers' own ``indexer_types`` on the same weights is the oracle."""
    model, ids = build("glm_moe_dsa"), tokens()
    native = build("glm_moe_dsa", indexer_types=indexer_types(str(pattern)))
    native.load_state_dict(model.state_dict(), strict=False)
    Switch(model, range(LAYERS)).use(pattern)
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
    selection = model.model.layers[1].self_attn.indexer(torch.empty(1, 4, 64, device="meta"))
    assert selection.device.type == "meta"


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
