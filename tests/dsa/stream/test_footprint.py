"""Bytes of checkpoints by headers and by configs, held against each other and against what is published."""

import json
import shutil

import eight_bit
import published_checkpoints
import pytest
from random_models import load_checkpoint

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sizes.count import layer_sizes, measure_sizes
from indexcache.dsa.checkpoint.sizes.decoders import DECODERS
from indexcache.dsa.checkpoint.stored.shards import Tensor
from indexcache.dsa.stream.footprint import _plain_numbers, footprint
from indexcache.dsa.stream.formats.recognise import checkpoint_format

GB = 1e9
V32 = published_checkpoints.CONFIGS / "deepseek_v32.json"


def opened(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(str(folder))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """DeepSeek-V3.2 in 163 shards that hold nothing."""
    config = json.loads(V32.read_text())
    tensors = published_checkpoints.deepseek_v32_tensors(config)
    return published_checkpoints.write(tmp_path_factory.mktemp("v32"), config, tensors, shards=163)


def test_the_published_size_of_deepseek_v32_from_its_headers(published):
    bytes_of = footprint(open_checkpoint(str(published)))
    assert bytes_of.files == pytest.approx(690 * GB, rel=0.01)  # as the hub shows it
    assert bytes_of.form == "FP8 in 128 x 128 blocks, dequantised a layer at a time"
    # What predicts further tokens, 11.5 GB of experts with an embedding and a head of its own, never moves.
    assert bytes_of.files - bytes_of.streamed - bytes_of.resident == pytest.approx(15.5 * GB, rel=0.05)
    assert bytes_of.in_memory == pytest.approx(2 * 671.9 * GB, rel=0.001)
    assert (bytes_of.missing, len(bytes_of.layers)) == ("", 61)
    # Nothing of it is on the disk but the headers.
    assert sum(path.stat().st_blocks * 512 for path in published.iterdir()) < 0.1 * GB


def test_the_config_alone_comes_near_the_headers(published, tmp_path):
    told = footprint(open_checkpoint(str(published)))
    counted = footprint(opened(tmp_path, json.loads(V32.read_text())))
    assert (counted.files, told.plain, told.resident) == (None, counted.plain, counted.resident)
    # Scales, one for 16,384 numbers, and the few tensors that stay in bf16.
    assert counted.streamed == pytest.approx(told.streamed, rel=0.002)
    assert "holds no weights" in counted.missing


def test_glm_5_in_bf16_takes_what_it_is_said_to(tmp_path):
    bytes_of = footprint(opened(tmp_path, published_checkpoints.glm_5()))
    assert bytes_of.in_memory == pytest.approx(1488 * GB, rel=0.001)
    assert bytes_of.layers == bytes_of.plain
    assert (bytes_of.quantised, bytes_of.form) == (False, "bfloat16")


def test_headers_of_a_shard_that_is_missing_are_not_read(published, tmp_path):
    shutil.copytree(
        published, tmp_path / "copy", copy_function=shutil.copy2, ignore=shutil.ignore_patterns("*.safetensors")
    )
    bytes_of = footprint(open_checkpoint(str(tmp_path / "copy")))
    assert (bytes_of.files, "lacks 'model-00001-of-00163.safetensors'" in bytes_of.missing) == (None, True)


@pytest.mark.parametrize("eight", [True, False])
def test_a_small_checkpoint_takes_what_its_loaded_layers_take(tmp_path, eight):
    stored, plain = eight_bit.make(tmp_path)
    bytes_of = footprint(open_checkpoint(str(stored if eight else plain)))
    model = load_checkpoint(open_checkpoint(str(plain)))
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in model.model.layers]
    assert list(bytes_of.plain) == layers
    assert bytes_of.in_memory == sum(weight.nbytes for weight in model.parameters())
    if not eight:
        # The correction of each router, which is in the files and no parameter.
        beside = sum(buffer.nbytes for layer in model.model.layers for buffer in layer.buffers())
        assert bytes_of.streamed == pytest.approx(sum(layers) + beside, abs=beside)
    else:
        assert 0.5 < bytes_of.streamed / sum(layers) < 0.8


@pytest.mark.parametrize("family", DECODERS)
def test_layers_and_what_is_resident_are_the_whole(family, tmp_path):
    config = json.loads((published_checkpoints.CONFIGS / f"{family}.json").read_text())
    checkpoint = opened(tmp_path, config)
    sizes, bytes_of = measure_sizes(checkpoint), footprint(checkpoint)
    assert bytes_of.in_memory == 2 * sizes.parameters, "towers are loaded too"
    assert bytes_of.beside == 2 * sizes.idle_parameters
    for layer in layer_sizes(checkpoint):
        assert 0 <= layer.idle <= layer.routed < layer.feed_forward


def group(targets, **weights):
    return {"targets": targets, "weights": {"symmetric": True, **weights}}


INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32}
MIXED = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": group(["Linear"], **INT4) | {"format": "pack-quantized"},
        "group_1": group(["re:.*self_attn.*"], type="float", num_bits=8, strategy="channel")
        | {"format": "float-quantized"},
    },
    "ignore": ["re:.*shared_experts.*", "lm_head", "re:(broken"],
}


def test_groups_in_several_formats_count_by_the_modules_that_they_name(tmp_path):
    """Experts in INT4 with a scale of 16 bits for 32, attention in FP8, shared experts plain."""
    checkpoint = opened(tmp_path, json.loads(V32.read_text()) | {"quantization_config": MIXED})
    bytes_of, layer = footprint(checkpoint), layer_sizes(checkpoint)[-1]
    assert "INT4 in groups of 32 and FP8 with one scale a row" in bytes_of.form
    assert layer.routed == 256 * 3 * 7168 * 2048
    bits = 4.5 * layer.routed + 8 * (layer.attention + layer.indexer)
    bits += 16 * (layer.feed_forward - layer.routed)
    assert bytes_of.layers[-1] == round(bits / 8)


def test_numbers_of_mixed_formats_are_told_by_headers(tmp_path):
    known = checkpoint_format(opened(tmp_path, json.loads(V32.read_text()) | {"quantization_config": MIXED}))
    stored = {
        "e.weight_packed": Tensor("I32", (64, 16), 0, 4096),
        "e.weight_scale": Tensor("BF16", (64, 4), 0, 512),
        "e.weight_shape": Tensor("I64", (2,), 0, 16),
        "a.weight": Tensor("F8_E4M3", (32, 128), 0, 4096),
        "a.weight_scale": Tensor("BF16", (32, 1), 0, 64),
        "norm.weight": Tensor("BF16", (128,), 0, 256),
    }
    counts, largest = _plain_numbers(stored, known)
    assert {name: count for name, count in counts.items() if count} == {
        "e.weight_packed": 64 * 128, "a.weight": 32 * 128, "norm.weight": 128
    }  # fmt: skip
    assert largest == 64 * 128
    del stored["a.weight_scale"]
    assert _plain_numbers(stored, known)[1] == 0, "what contradicts the config is for the load to refuse"


def test_modules_that_fp8_leaves_plain_count_whole(tmp_path):
    kept = {"quant_method": "fp8", "modules_to_not_convert": ["self_attn.o_proj"]}
    config = json.loads(V32.read_text())
    plain = footprint(opened(tmp_path, config | {"quantization_config": kept}))
    layer = layer_sizes(open_checkpoint(str(tmp_path)))[-1]
    all_fp8 = footprint(opened(tmp_path, config | {"quantization_config": {"quant_method": "fp8"}}))
    assert plain.layers[-1] - all_fp8.layers[-1] == pytest.approx(layer.attention, rel=0.001)


@pytest.mark.parametrize(
    ("settings", "form", "streamed"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, loaded whole by transformers", 0.25),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8 in 128 x 128 blocks, dequantised", 0.5),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "experts in FP4, dequantised a layer at a time", 0.2713),
        ({"quant_method": "hqq"}, "hqq, loaded whole by transformers", 1),
    ],
    ids=str,
)
def test_formats_are_in_their_own_words_and_count_by_their_own_bits(tmp_path, settings, form, streamed):
    bytes_of = footprint(opened(tmp_path, json.loads(V32.read_text()) | {"quantization_config": settings}))
    assert form in bytes_of.form
    assert bytes_of.streamed / sum(bytes_of.plain) == pytest.approx(streamed, rel=0.001)
