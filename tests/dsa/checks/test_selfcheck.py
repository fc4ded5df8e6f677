"""The self-check: what it refuses, and models of no known family, which it is there for."""

import pytest
import torch
import transformers
from random_models import EMBEDDED, LAYERS, build, load_checkpoint, measure, randomised, settings_of, site_layers
from torch import nn

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.checkpoint.sizes.count import measure_sizes
from indexcache.dsa.checks.selfcheck import check_tokens, self_check
from indexcache.dsa.model import stack
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.switch import Switch
from indexcache.errors import ModelError
from indexcache.pattern import Pattern

TOKENS = torch.randint(0, 4000, (100,), generator=torch.Generator().manual_seed(3)).tolist()


class UnheardOfConfig(transformers.GlmMoeDsaConfig):
    """A family that nobody has described, with an ``index_topk``."""

    model_type = "unheard_of_dsa"


class UnheardOfForCausalLM(transformers.GlmMoeDsaForCausalLM):
    config_class = UnheardOfConfig


class UnsaidConfig(transformers.Qwen4ExpTextConfig):
    """One that says nothing of how much it selects under a name that could be known."""

    model_type = "unsaid_sparse"


class UnsaidForCausalLM(transformers.Qwen4ExpForCausalLM):
    config_class = UnsaidConfig


@pytest.fixture(scope="module", autouse=True)
def registered():
    for config, model in ((UnheardOfConfig, UnheardOfForCausalLM), (UnsaidConfig, UnsaidForCausalLM)):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModelForCausalLM.register(config, model, exist_ok=True)


@pytest.fixture
def loaded(checkpoints):
    """A loaded model of a known family, and its checkpoint."""

    def load(family):
        checkpoint = open_checkpoint(str(checkpoints[family]))
        return load_checkpoint(checkpoint, "float32"), checkpoint

    return load


def refused(model, checkpoint, says, advises="--no-selfcheck"):
    before = {name for name, module in model.named_modules() if "forward" in module.__dict__}
    with pytest.raises(ModelError, match=says) as caught:
        self_check(model, checkpoint, TOKENS)
    assert "\n" not in caught.value.line()
    assert advises in caught.value.hint
    assert before == {name for name, module in model.named_modules() if "forward" in module.__dict__}


class TestRefuses:
    def test_selections_that_nobody_reads(self, loaded):
        model, checkpoint = loaded("glm_moe_dsa")
        for indexer in find_indexers(model)[1].values():
            indexer.index_topk = 10**6
        refused(model, checkpoint, "changes nothing in layers 1-5")

    def test_a_choice_that_begins_earlier_than_the_table_says(self, loaded):
        model, checkpoint = loaded("deepseek_v32")
        for indexer in find_indexers(model)[1].values():
            indexer.index_topk = 8
        refused(
            model, checkpoint, "patterns differ on 17 tokens, although indexers should choose from more than 16"
        )

    def test_state_that_layers_carry_unseen(self, loaded, monkeypatch):
        monkeypatch.setattr(stack, "CARRYING_ARGUMENTS", frozenset())
        refused(*loaded("mistral_large4"), "beside other patterns than alone")

    def test_state_that_layers_keep_outside_of_their_arguments(self, loaded):
        model, checkpoint = loaded("glm_moe_dsa")
        outputs = []
        model.model.layers[2].register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        model.model.layers[4].register_forward_hook(
            lambda module, args, output: (output[0] + 0.1 * outputs[-1], *output[1:])
        )
        refused(model, checkpoint, "beside other patterns than alone")

    def test_but_not_what_differs_between_equal_runs_too(self, loaded):
        """As on GPUs, where sums are taken in any order."""
        model, checkpoint = loaded("glm_moe_dsa")
        noise = torch.Generator().manual_seed(1)
        model.lm_head.register_forward_hook(
            lambda module, args, output: output + 1e-6 * torch.randn(output.shape, generator=noise)
        )
        self_check(model, checkpoint, TOKENS)

    def test_layers_that_are_called_in_another_way(self, loaded):
        model, checkpoint = loaded("glm_moe_dsa")

        class Positional(type(model.model.layers[0])):
            def __call__(self, hidden_states, attention_mask, **kwargs):
                return super().__call__(hidden_states, attention_mask, **kwargs)

        for layer in model.model.layers:
            layer.__class__ = Positional
        refused(model, checkpoint, "it raises TypeError")

    def test_a_model_whose_own_forward_fails(self, tmp_path):
        """transformers 5.23's glm5_next hands no selection through linear layers."""
        model = build("glm5_next", indexer_types=["full"] * 4 + ["shared"] * 2)
        model.save_pretrained(tmp_path)
        checkpoint = open_checkpoint(str(tmp_path))
        assert (checkpoint.site_layers, checkpoint.shared_layers) == ((1, 2), (4, 5))
        refused(
            load_checkpoint(checkpoint, "float32"), checkpoint, "it raises ValueError: Shared DSA layers require"
        )

    def test_logits_that_are_no_numbers(self, loaded):
        model, checkpoint = loaded("glm_moe_dsa")
        model.lm_head.weight.data[0] = float("nan")
        refused(
            model,
            checkpoint,
            "NaN or infinite: its weight lm_head.weight",
            "fetch or convert the checkpoint again",
        )


def test_flips_are_all_tried_on_an_unknown_family_and_some_on_a_known_one(monkeypatch):
    checkpoint, tried = open_checkpoint(str(EMBEDDED)), []
    measure = PatternLosses.measure

    def watched(self, patterns, *args, **kwargs):
        tried.extend(patterns)
        return measure(self, patterns, *args, **kwargs)

    monkeypatch.setattr(PatternLosses, "measure", watched)
    self_check(load_checkpoint(checkpoint), checkpoint, TOKENS)
    flips = {pattern for pattern in tried if pattern.kept == 15}
    assert len(flips) == 8
    assert {Pattern.all_full(16).share(site) for site in (1, 15)} <= flips


def test_its_window_is_short():
    assert check_tokens(16) == 82
    assert check_tokens(2048) == 2306


class TestUnknownFamilies:
    def save(self, config, model, settings, folder):
        made = randomised(model(config(**settings)))
        made.save_pretrained(folder)
        return open_checkpoint(str(folder))

    def test_are_searched_where_the_checks_hold_and_say_what_is_assumed(self, tmp_path):
        settings = settings_of("glm_moe_dsa")
        checkpoint = self.save(UnheardOfConfig, UnheardOfForCausalLM, settings, tmp_path)
        assert checkpoint.family is None
        assert (checkpoint.site_layers, checkpoint.shared_layers) == (tuple(range(LAYERS)), ())
        assert checkpoint.selection_width == 16
        assert len(checkpoint.assumed) == 3
        assert "index_topk" in checkpoint.assumed[2]
        assert measure_sizes(checkpoint).indexer_parameters > 0
        self_check(load_checkpoint(checkpoint, "float32"), checkpoint, TOKENS)

    def test_may_share_already(self, tmp_path):
        settings = settings_of("glm_moe_dsa", indexer_types=["full", "full", "shared", "full", "shared", "full"])
        checkpoint = self.save(UnheardOfConfig, UnheardOfForCausalLM, settings, tmp_path)
        assert (checkpoint.site_layers, checkpoint.shared_layers) == ((0, 1, 3, 5), (2, 4))
        assert "indexer_types" in checkpoint.assumed[1]
        self_check(load_checkpoint(checkpoint, "float32"), checkpoint, TOKENS)

    def test_need_no_known_width(self, tmp_path):
        checkpoint = self.save(UnsaidConfig, UnsaidForCausalLM, settings_of("qwen4_exp"), tmp_path)
        assert checkpoint.site_layers == site_layers("qwen4_exp")
        assert checkpoint.selection_width == 0
        assert "no index_topk" in checkpoint.assumed[2]
        self_check(load_checkpoint(checkpoint, "float32"), checkpoint, TOKENS)

    def test_without_indexers_are_refused_as_before(self, llama):
        with pytest.raises(ModelError, match="no lightning indexer"):
            open_checkpoint(str(llama))


class TestMultiTokenPrediction:
    """Its layers have indexers too, which are no sites."""

    def test_beside_the_decoder(self):
        model = build("glm_moe_dsa")
        model.mtp = nn.Module()
        model.mtp.layers = nn.ModuleList([build("glm_moe_dsa", layers=1).model.layers[0]])
        assert Switch(model, range(LAYERS)).stack_name == "model.layers"

    def test_behind_the_last_layer(self):
        model, ids = build("glm_moe_dsa"), torch.tensor([TOKENS[:40]])
        alone = PatternLosses(build("glm_moe_dsa"), range(LAYERS))
        model.model.layers.append(build("glm_moe_dsa", layers=7).model.layers[6])
        losses = PatternLosses(model, range(LAYERS))
        patterns = [Pattern("FFFFFF"), Pattern("FFSFFS")]
        assert measure(losses, patterns, ids[0].tolist()) == measure(alone, patterns, ids[0].tolist())
        assert losses.layer_runs == alone.layer_runs

    def test_its_entries_in_indexer_types_are_left_out(self, tmp_path):
        types = ["full", "shared", "full", "shared", "full", "full", "full"]
        transformers.GlmMoeDsaConfig(**settings_of("glm_moe_dsa", indexer_types=types)).save_pretrained(tmp_path)
        assert open_checkpoint(str(tmp_path)).site_layers == (0, 2, 4, 5)
