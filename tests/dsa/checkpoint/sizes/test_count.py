"""Parameters counted by a config's numbers are those of the modules that transformers builds from it."""

import copy
import json
import random
from pathlib import Path

import pytest
import transformers
from random_models import LACKING, class_names, settings_of

from indexcache.dsa.checkpoint import config as configs
from indexcache.dsa.checkpoint.config import Trust, open_checkpoint, open_plain_checkpoint
from indexcache.dsa.checkpoint.sizes.count import count_sizes, measure_sizes
from indexcache.dsa.checkpoint.sizes.decoders import DECODERS
from indexcache.errors import ModelError
from indexcache.system import versions

CONFIGS = Path(__file__).parents[3] / "assets" / "configs"


def public(family):
    """A config.json in the shape of the public one."""
    return json.loads((CONFIGS / f"{family}.json").read_text())


def small(family):
    """A config.json of ``family`` with six layers, as transformers writes it."""
    config = getattr(transformers, class_names(family)[0])(**settings_of(family))
    return json.loads(config.to_json_string(use_diff=False))


def changed(document, changes):
    """``document`` with other values: changes by key are of the language model, others by "part.key"."""
    document = copy.deepcopy(document)
    for name, value in changes.items():
        part, _, key = name.rpartition(".")
        text = document.get("text_config", document)
        place = {"": text, "top": document}.get(part) if part in ("", "top") else document[part]
        place[key] = value
    return document


@pytest.fixture
def opened(tmp_path):
    def run(document):
        (tmp_path / "config.json").write_text(json.dumps(document))
        return open_checkpoint(str(tmp_path))

    return run


@pytest.mark.parametrize("shape", [public, small])
@pytest.mark.parametrize("family", DECODERS)
def test_every_family_is_counted_as_its_modules_are(family, shape, opened):
    checkpoint = opened(shape(family))
    assert count_sizes(checkpoint) == measure_sizes(checkpoint)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("deepseek_v32", {"attention_bias": True}),
        ("deepseek_v32", {"tie_word_embeddings": True}),
        ("glm_moe_dsa", {"indexer_types": ["full", "full", "shared", "full", "shared", "shared"]}),
        ("glm_moe_dsa", {"n_shared_experts": 2, "first_k_dense_replace": 0, "mlp_layer_types": None}),
        ("axk2", {"mlp_layer_types": ["sparse"] * 3 + ["dense"] * 3}),
        ("hy_v4", {"hc_mult": 3, "attention_bias": True}),
        ("mistral_large4", {"kv_source_layers": [0, 0, 2, 2, 2, 5], "no_rope_layers": [0, 1, 1, 0, 0, 1]}),
        ("mistral_large4", {"top.multimodal_projector_bias": True, "top.vision_feature_layer": [-1, -2]}),
        ("mistral_large4", {"top.spatial_merge_size": 3, "top.tie_word_embeddings": True}),
        ("dots3_note", {"attention_bias": True}),
        ("glm5_next", {"vision_config.attention_bias": False, "vision_config.spatial_merge_size": 1}),
        ("glm5_next", {"top.tie_word_embeddings": True, "index_kpool": 2}),
        ("deepseek_v4", {"mlp_bias": True, "hc_mult": 4}),
        ("minimax_m3_vl", {"tie_word_embeddings": True, "mlp_layer_types": ["sparse"] * 6}),
        ("qwen4_exp", {"ple_layer_ids": [1, 3], "attention_bias": True, "ngram_size": 3}),
        ("qwen4_exp", {"ple_layer_ids": []}),
    ],
)
def test_what_a_config_may_change_is_counted(family, changes, opened):
    unchanged = count_sizes(opened(small(family)))
    checkpoint = opened(changed(small(family), changes))
    counted = count_sizes(checkpoint)
    assert counted == measure_sizes(checkpoint)
    assert counted != unchanged


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("glm_moe_dsa", {"hidden_act": "unheard_of"}),
        ("glm_moe_dsa", {"intermediate_size": -1}),
        ("glm_moe_dsa", {"num_key_value_heads": 0}),
        ("glm_moe_dsa", {"pad_token_id": 4096}),
        ("glm_moe_dsa", {"rope_parameters": {"rope_type": "unheard_of", "rope_theta": 1e4}}),
        ("glm_moe_dsa", {"rope_parameters": {"rope_type": "default", "rope_theta": "much"}}),
        ("qwen4_exp", {"head_dim": 0}),
        ("deepseek_v4", {"scoring_func": "unheard_of"}),
        ("deepseek_v4", {"dtype": {}}),
        ("dots3_note", {"per_layer_config": {number: {"moe_intermediate_size": 16} for number in "23"}}),
        ("mistral_large4", {"vision_config.hidden_size": 33}),
        ("mistral_large4", {"vision_config.patch_size": [14, 14]}),
        ("mistral_large4", {"top.vision_config": {"model_type": "clip_vision_model"}}),
    ],
)
def test_odd_numbers_are_left_to_the_modules(family, changes, opened):
    if family in LACKING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    assert count_sizes(opened(changed(small(family), changes))) is None


class TestOnlyPlainConfigsAreOpenedWithoutPyTorch:
    def plain(self, tmp_path, document, trust=Trust()):
        (tmp_path / "config.json").write_text(json.dumps(document))
        return open_plain_checkpoint(str(tmp_path), None, trust)

    def test_as_with_it(self, tmp_path):
        checkpoint = self.plain(tmp_path, public("glm_moe_dsa"))
        whole = open_checkpoint(str(tmp_path))
        assert checkpoint.config.to_dict() == whole.config.to_dict()
        assert checkpoint.site_layers == whole.site_layers
        assert self.plain(tmp_path, small("qwen4_exp")) is not None  # its text alone, "qwen4_exp_text"

    @pytest.mark.parametrize("name", ["llama", "deepseek_v3", None, ["glm_moe_dsa"]])
    def test_others_are_not(self, tmp_path, name):
        assert self.plain(tmp_path, public("glm_moe_dsa") | {"model_type": name}) is None

    def test_code_that_may_run_is_asked(self, tmp_path):
        document = public("axk2")
        assert "auto_map" in document
        assert self.plain(tmp_path, document) is not None
        assert self.plain(tmp_path, document, Trust(remote_code=True)) is None

    def test_a_transformers_that_was_not_tested_is_asked(self, tmp_path, monkeypatch):
        monkeypatch.setitem(versions.TESTED, "transformers", ("4.0", "4.1"))
        assert self.plain(tmp_path, public("glm_moe_dsa")) is None

    def test_what_transformers_refuses_is_left_to_it(self, tmp_path):
        assert self.plain(tmp_path, public("glm_moe_dsa") | {"hidden_size": "wide"}) is None

    def test_what_is_refused_as_it_is_written_is_refused_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(configs, "_built_config", lambda *args: pytest.fail("a config was built"))
        with pytest.raises(ModelError, match="index_topk is 0"):
            self.plain(tmp_path, public("glm_moe_dsa") | {"index_topk": 0})


ODD = (None, 0, -1, 1, 3, "x", True, False, [], 5000, 2.5, {}, [0], ["x"])


def entries(part, place=()):
    for key, value in part.items():
        yield (*place, key)
        if isinstance(value, dict):
            yield from entries(value, (*place, key))


def mutated(document, count):
    """``document`` with one value replaced by an odd one, or left out, ``count`` times."""
    dice = random.Random(5)
    places = [place for place in entries(document) if place[-1] != "transformers_version"]
    for _ in range(count):
        variant = copy.deepcopy(document)
        place, value = dice.choice(places), dice.choice([*ODD, ...])
        *above, key = place
        part = variant
        for step in above:
            part = part[step]
        if value is ...:
            del part[key]
        elif value != 5000 or "layers" not in key:
            part[key] = value
        yield (place, value), variant


@pytest.mark.torture
@pytest.mark.parametrize("family", DECODERS)
def test_whatever_is_counted_is_what_the_modules_have(family, opened, cases):
    for what, document in mutated(small(family), 300):
        try:
            checkpoint = opened(document)
            counted = count_sizes(checkpoint)
        except ModelError:
            continue
        if counted is not None:
            try:
                measured = measure_sizes(checkpoint)
            except ModelError as error:
                measured = error.line()
            cases.check(counted == measured, f"{family} {what}: {counted}, but {measured}")
