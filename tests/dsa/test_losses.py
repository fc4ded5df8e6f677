"""Losses layer by layer: the model's own, whatever is shared between patterns, wherever the weights are."""

import itertools

import pytest
import torch
import transformers
from random_models import FAMILIES, build

from indexcache.dsa import losses as losses_module
from indexcache.dsa.losses import PatternLosses
from indexcache.dsa.switch import Switch
from indexcache.pattern import Pattern

LAYERS, TOPK = 6, 16
ALL_PATTERNS = [Pattern("F" + "".join(tail)) for tail in itertools.product("FS", repeat=LAYERS - 1)]


def window(length, seed=1):
    return torch.randint(0, 4096, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_loss_is_the_models_own(self, family):
        model, ids = build(family), window(70)
        stock = build(family)
        switch = Switch(stock, range(LAYERS))
        measured = PatternLosses(model, range(LAYERS)).measure(ALL_PATTERNS[:8], ids)
        rows = torch.tensor([ids])
        for pattern, loss in zip(ALL_PATTERNS[:8], measured, strict=True):
            switch.use(pattern)
            with torch.inference_mode():
                own = stock(input_ids=rows, labels=rows, use_cache=False).loss.item()
            assert loss / 69 == pytest.approx(own, abs=1e-5), str(pattern)

    def test_patterns_measured_together_equal_patterns_measured_alone(self, family):
        together, ids = PatternLosses(build(family), range(LAYERS)), window(48)
        alone = PatternLosses(build(family), range(LAYERS))
        assert together.measure(ALL_PATTERNS, ids) == [alone.measure([each], ids)[0] for each in ALL_PATTERNS]

    @pytest.mark.parametrize("length", [8, TOPK, TOPK + 1])
    def test_blind_windows_give_every_pattern_the_same_loss(self, family, length):
        measured = PatternLosses(build(family), range(LAYERS)).measure(ALL_PATTERNS, window(length))
        assert len(set(measured)) == 1, "patterns differ although every key is selected"

    def test_the_first_informative_window_tells_patterns_apart(self, family):
        measured = PatternLosses(build(family), range(LAYERS)).measure(ALL_PATTERNS, window(TOPK + 2))
        assert len(set(measured)) > 1, "all patterns have the same loss at the first informative length"

    def test_the_model_is_left_as_it_was(self, family):
        model, ids = build(family), torch.tensor([window(40)])
        stock = model(input_ids=ids).logits
        losses = PatternLosses(model, range(LAYERS))
        losses.measure(ALL_PATTERNS[-3:], ids[0].tolist())
        losses.switch.remove()
        assert torch.equal(model(input_ids=ids).logits, stock)
        assert not any("forward" in module.__dict__ for module in model.modules())

    def test_layers_on_disk_give_the_same_losses(self, family, checkpoints, tmp_path):
        place = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
        place |= {f"model.layers.{layer}": "cpu" if layer == 0 else "disk" for layer in range(LAYERS)}
        options = {"dtype": torch.float32, "use_safetensors": True}
        model_class = transformers.AutoModelForCausalLM
        there = model_class.from_pretrained(checkpoints[family], **options)
        away = model_class.from_pretrained(
            checkpoints[family], device_map=place, offload_folder=tmp_path, **options
        )
        assert next(away.model.layers[3].parameters()).device.type == "meta", "nothing was offloaded"
        ids = window(40)
        expected = PatternLosses(there.eval(), range(LAYERS)).measure(ALL_PATTERNS[::5], ids)
        assert PatternLosses(away.eval(), range(LAYERS)).measure(ALL_PATTERNS[::5], ids) == expected


def test_candidates_of_a_step_share_the_layers_before_their_flip():
    losses = PatternLosses(build("glm_moe_dsa"), range(LAYERS))
    full = Pattern.all_full(LAYERS)
    losses.measure([full.share(site) for site in range(1, LAYERS)], window(24))
    # The candidate that flips site s runs layers s to 5 on its own; the path they leave runs 0 to 4.
    assert losses.layer_runs == sum(LAYERS - site for site in range(1, LAYERS)) + (LAYERS - 1)


def test_logits_in_chunks_of_rows_give_the_same_loss(monkeypatch):
    ids = window(50)
    whole = PatternLosses(build("glm_moe_dsa"), range(LAYERS)).measure(ALL_PATTERNS[:3], ids)
    monkeypatch.setattr(losses_module, "_LOGITS_BYTES", 4 * 4096 * 7)
    chunked = PatternLosses(build("glm_moe_dsa"), range(LAYERS)).measure(ALL_PATTERNS[:3], ids)
    assert chunked == pytest.approx(whole, rel=1e-6)


def test_float64_agrees_with_float32():
    # Without experts: their grouped matmul has no float64 form.
    dense = build("glm_moe_dsa", first_k_dense_replace=LAYERS)
    single = PatternLosses(dense, range(LAYERS)).measure(ALL_PATTERNS, window(48))
    double = PatternLosses(build("glm_moe_dsa", first_k_dense_replace=LAYERS).double(), range(LAYERS)).measure(
        ALL_PATTERNS, window(48)
    )
    assert single == pytest.approx(double, rel=1e-4)


def test_a_natively_shared_layer_follows_the_switched_site_before_it():
    roles = ["full", "full", "shared", "full", "shared", "full"]
    model = build("glm_moe_dsa", indexer_types=roles)
    native = build("glm_moe_dsa", indexer_types=["full", "full", "shared", "shared", "shared", "full"])
    native.load_state_dict(model.state_dict(), strict=False)
    ids = window(48)
    switched = PatternLosses(model, (0, 1, 3, 5)).measure([Pattern("FFSF"), Pattern("FFFF")], ids)
    assert switched[0] == PatternLosses(native, (0, 1, 5)).measure([Pattern("FFF")], ids)[0]
    assert switched[0] != switched[1]
