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
from indexcache.dsa.stream.footprint import footprint

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
    assert bytes_of.in_memory == 2 * (sizes.parameters - sizes.idle_parameters)
    for layer in layer_sizes(checkpoint):
        assert 0 <= layer.idle < layer.feed_forward


@pytest.mark.parametrize(
    ("settings", "form", "streamed"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, loaded whole by transformers", 0.25),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8 in 128 x 128 blocks, dequantised", 0.5),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "experts in FP4, dequantised a layer at a time", 0.25),
        ({"quant_method": "hqq"}, "hqq, loaded whole by transformers", 1),
    ],
    ids=str,
)
def test_formats_are_in_their_own_words_and_count_by_their_own_bits(tmp_path, settings, form, streamed):
    bytes_of = footprint(opened(tmp_path, json.loads(V32.read_text()) | {"quantization_config": settings}))
    assert form in bytes_of.form
    assert bytes_of.streamed / sum(bytes_of.plain) == pytest.approx(streamed, rel=0.001)
