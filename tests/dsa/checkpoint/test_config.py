"""What a config tells, and how a wrong checkpoint is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import transformers
from random_models import DIMENSIONS, EMBEDDED, load_checkpoint
from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint.config import has_nested_config, load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.sizes.count import measure_sizes
from indexcache.errors import ModelError, SettingError


def copy(folder, to):
    return shutil.copytree(folder, to)


def test_sites_and_selection_width_come_from_the_config(checkpoints):
    checkpoint = open_checkpoint(str(checkpoints["deepseek_v32"]))
    assert checkpoint.site_layers == tuple(range(6))
    assert (checkpoint.layers, checkpoint.selection_width, checkpoint.revision) == (6, 16, None)
    assert checkpoint.architecture == "DeepseekV32ForCausalLM"


def test_only_full_layers_of_a_sharing_checkpoint_are_sites(tmp_path):
    types = ["full", "shared", "full", "shared"]
    transformers.GlmMoeDsaConfig(num_hidden_layers=4, indexer_types=types, **DIMENSIONS).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.site_layers, checkpoint.shared_layers) == ((0, 2), (1, 3))


def test_sizes_are_those_of_the_real_model():
    checkpoint = open_checkpoint(str(EMBEDDED))
    model = load_checkpoint(checkpoint)
    sizes = measure_sizes(checkpoint)
    assert sizes.parameters == sum(weight.numel() for weight in model.parameters())
    named = model.named_parameters()
    assert sizes.indexer_parameters == sum(weight.numel() for name, weight in named if "indexer" in name) > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [("./nowhere", "does not exist"), ("nobody/nothing", "neither a local folder nor reachable on the hub")],
)
def test_a_missing_model_is_one_line(name, says):
    with pytest.raises(ModelError, match=says) as caught:
        open_checkpoint(name)
    assert "\n" not in caught.value.line()


def test_a_model_without_indexers_names_the_families_that_have_them(llama):
    with pytest.raises(ModelError, match="'llama'") as caught:
        open_checkpoint(str(llama))
    assert "glm_moe_dsa" in caught.value.hint
    assert "deepseek_v32" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": 3}', '{"model_type": "unheard_of"}', "{}"])
def test_a_broken_config_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(str(tmp_path))
    assert "\n" not in caught.value.line()


def test_a_first_layer_without_an_indexer_is_refused(tmp_path):
    types = ["shared", "full", "full"]
    transformers.GlmMoeDsaConfig(num_hidden_layers=3, indexer_types=types, **DIMENSIONS).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="before its first shared layer"):
        open_checkpoint(str(tmp_path))


def test_missing_weights_and_tokenizer_are_said(checkpoints, tmp_path):
    (tmp_path / "config.json").write_text((checkpoints["glm_moe_dsa"] / "config.json").read_text())
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises(ModelError, match="holds no weights"):
        load_checkpoint(checkpoint)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("part", [".indexer.", "model.layers.3.", "lm_head"])
def test_weights_that_are_not_there_are_refused_and_not_made_up(checkpoints, tmp_path, part):
    folder = copy(checkpoints["glm_moe_dsa"], tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    left = {name: weight for name, weight in weights.items() if part not in name}
    assert len(left) < len(weights)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=part):
        load_checkpoint(open_checkpoint(str(folder)))


def test_a_revision_of_a_local_folder_is_refused(checkpoints):
    with pytest.raises(ModelError, match="no revision"):
        open_checkpoint(str(checkpoints["glm_moe_dsa"]), revision="main")


@pytest.mark.parametrize("name", ["search", "", "dsa"])
def test_the_packages_folders_are_no_models(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        open_checkpoint(name)


def test_an_unknown_dtype_is_refused(checkpoints):
    with pytest.raises(SettingError, match="int8"):
        load_checkpoint(open_checkpoint(str(checkpoints["glm_moe_dsa"])), dtype="int8")


def test_the_dtype_is_the_checkpoints_unless_asked_otherwise():
    checkpoint = open_checkpoint(str(EMBEDDED))
    assert json.loads((EMBEDDED / "config.json").read_text())["dtype"] == "bfloat16"
    assert str(load_checkpoint(checkpoint).dtype) == "torch.bfloat16"
    assert str(load_checkpoint(checkpoint, "float32").dtype) == "torch.float32"


def test_a_config_that_nests_the_text_model_is_told_apart(checkpoints, tmp_path):
    checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
    assert not has_nested_config(checkpoint)
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 2}}')
    assert has_nested_config(replace(checkpoint, folder=tmp_path))
