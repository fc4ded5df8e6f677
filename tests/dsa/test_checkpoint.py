"""What a config tells, what the hashes cover, and how a wrong checkpoint is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import transformers
from random_models import DIMENSIONS, EMBEDDED
from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint import (
    config_sha256,
    has_nested_config,
    load_tokenizer,
    measure_sizes,
    open_checkpoint,
    weights_sha256,
)
from indexcache.dsa.families import FAMILIES, text_config
from indexcache.dsa.loading import load_model
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
    model = load_model(checkpoint)
    sizes = measure_sizes(checkpoint)
    assert sizes.parameters == sum(weight.numel() for weight in model.parameters())
    named = model.named_parameters()
    assert sizes.indexer_parameters == sum(weight.numel() for name, weight in named if "indexer" in name) > 0


def test_hashes_follow_the_content_and_not_the_place(checkpoints, tmp_path):
    original = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
    moved = open_checkpoint(str(copy(checkpoints["glm_moe_dsa"], tmp_path / "moved")))
    assert weights_sha256(moved) == weights_sha256(original)
    assert config_sha256(moved) == config_sha256(original)
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_sha256(moved) != weights_sha256(original)


def test_hashes_cover_every_shard(checkpoints, tmp_path):
    model = load_model(open_checkpoint(str(checkpoints["glm_moe_dsa"])))
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    sharded = open_checkpoint(str(tmp_path))
    before = weights_sha256(sharded)
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    assert last.name != "model.safetensors", "the checkpoint was not sharded"
    last.write_bytes(last.read_bytes() + b" ")
    assert weights_sha256(sharded) != before


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
    with pytest.raises(ModelError, match="no safetensors weights"):
        weights_sha256(checkpoint)
    with pytest.raises(ModelError, match=r"weights .* cannot be loaded"):
        load_model(checkpoint)
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
        load_model(open_checkpoint(str(folder)))


def test_a_broken_or_incomplete_set_of_shards_is_one_line(checkpoints, tmp_path):
    load_model(open_checkpoint(str(checkpoints["glm_moe_dsa"]))).save_pretrained(tmp_path, max_shard_size="300KB")
    checkpoint = open_checkpoint(str(tmp_path))
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match="lacks 'model-00002"):
        weights_sha256(checkpoint)
    for content in ("{", "{}", "[]"):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ModelError, match="is broken"):
            weights_sha256(checkpoint)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"indexer_types": ["full"] * 3}, "indexer_types"),
        ({"indexer_types": ["full", "foo"] * 3}, "indexer_types"),
        ({"index_topk": 0}, "index_topk is 0"),
        ({"index_topk": -3}, "index_topk"),
    ],
)
def test_an_impossible_config_is_one_line(checkpoints, tmp_path, changes, says):
    config = json.loads((checkpoints["glm_moe_dsa"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=says):
        open_checkpoint(str(tmp_path))


IMPOSSIBLE = {
    "qwen4_exp without an indexer": (
        "qwen4_exp",
        dict.fromkeys(("n_heads", "kv_heads", "head_dim", "budget", "compress_ratio")),
        "indexer_compress_ratio is None",
    ),
    "minimax_m3_vl without a sparse layer": (
        "minimax_m3_vl",
        {"layer_types": ["full_attention"] * 6},
        "gives none of its layers an indexer",
    ),
    "minimax_m3_vl without blocks": ("minimax_m3_vl", {"index_topk_blocks": 0}, "index_topk_blocks is 0"),
    "minimax_m3_vl with local blocks only": ("minimax_m3_vl", {"index_local_blocks": 3}, "leave none of"),
    "deepseek_v4 without a rate": ("deepseek_v4", {"compress_rates": {"x": 4}}, "compress_rates give None"),
    "deepseek_v4 without compressed layers": (
        "deepseek_v4",
        {"layer_types": ["sliding_attention"] * 6},
        "gives none of its layers an indexer",
    ),
    "glm5_next without a pool": ("glm5_next", {"index_kpool": 0}, "index_kpool"),
    "glm5_next that begins with a shared layer": (
        "glm5_next",
        {"indexer_types": ["full", "shared", "full", "full", "full", "full"]},
        "before its first shared layer",
    ),
    "mistral_large4 with too few roles": ("mistral_large4", {"indexer_types": ["full"]}, "indexer_types"),
    "hy_v4 with unknown roles": ("hy_v4", {"indexer_types": ["F", "S"] * 3}, "indexer_types"),
    "axk2 without a width": ("axk2", {"index_topk": 0}, "index_topk is 0"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_config_of_any_family_is_one_line(checkpoints, tmp_path, case):
    family, changes, says = IMPOSSIBLE[case]
    config = json.loads((checkpoints[family] / "config.json").read_text())
    if family == "qwen4_exp":
        changes = {f"indexer_{name}": value for name, value in changes.items()}
    config.get("text_config", config).update(changes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=says) as caught:
        open_checkpoint(str(tmp_path))
    assert "\n" not in caught.value.line()


def test_a_language_model_that_transformers_cannot_run_alone_is_refused(checkpoints, tmp_path):
    config = json.loads((checkpoints["mistral_large4"] / "config.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no language model of type 'mistral_large4_text'"):
        open_checkpoint(str(tmp_path))


def test_default_layouts_of_the_published_checkpoints():
    """What the config classes say by themselves, as counted in transformers 5.23."""
    counted = {"deepseek_v32": 61, "glm_moe_dsa": 78, "axk2": 48, "hy_v4": 10, "deepseek_v4": 20}
    for family, sites in counted.items():
        config = transformers.AutoConfig.for_model(family)
        assert len(FAMILIES[family].site_layers(config)) == sites, family
    assert FAMILIES["hy_v4"].shared_layers(transformers.AutoConfig.for_model("hy_v4"))[:4] == (2, 3, 4, 6)
    assert FAMILIES["deepseek_v4"].selection_width(transformers.AutoConfig.for_model("deepseek_v4")) == 4 * 513 - 1
    nested = {"mistral_large4": (72, 2048), "dots3_note": (13, 2048), "glm5_next": (11, 2063)}
    for family, expected in nested.items():
        text = text_config(transformers.AutoConfig.for_model(family))
        found = FAMILIES[family]
        assert (len(found.site_layers(text)), found.selection_width(text)) == expected, family
    minimax = transformers.AutoConfig.for_model("minimax_m3_vl_text")
    assert FAMILIES["minimax_m3_vl"].selection_width(minimax) == 16 * 128


def test_a_revision_of_a_local_folder_is_refused(checkpoints):
    with pytest.raises(ModelError, match="no revision"):
        open_checkpoint(str(checkpoints["glm_moe_dsa"]), revision="main")


@pytest.mark.parametrize("name", ["search", "", "dsa"])
def test_the_packages_folders_are_no_models(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        open_checkpoint(name)


def test_pickled_weights_are_refused(checkpoints, tmp_path):
    import torch

    folder = copy(checkpoints["glm_moe_dsa"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors weights"):
        weights_sha256(open_checkpoint(str(folder)))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(open_checkpoint(str(folder)))


def test_an_unknown_dtype_is_refused(checkpoints):
    with pytest.raises(SettingError, match="int8"):
        load_model(open_checkpoint(str(checkpoints["glm_moe_dsa"])), dtype="int8")


def test_the_dtype_is_the_checkpoints_unless_asked_otherwise():
    checkpoint = open_checkpoint(str(EMBEDDED))
    assert json.loads((EMBEDDED / "config.json").read_text())["dtype"] == "bfloat16"
    assert str(load_model(checkpoint).dtype) == "torch.bfloat16"
    assert str(load_model(checkpoint, "float32").dtype) == "torch.float32"


def test_a_config_that_nests_the_text_model_is_told_apart(checkpoints, tmp_path):
    checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
    assert not has_nested_config(checkpoint)
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 2}}')
    assert has_nested_config(replace(checkpoint, folder=tmp_path))
