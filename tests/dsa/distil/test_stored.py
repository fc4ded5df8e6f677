"""Indexers written back: the nearest numbers of each stored type, and where they stand in each family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sites import expected_indexers
from indexcache.dsa.checkpoint.stored.shards import Tensor
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.distil.stored import StoredParameter, stored_indexers
from indexcache.dsa.stream.formats.quantised import QuantisedWeight, grid_of
from indexcache.dsa.stream.load import load_measured
from indexcache.dsa.stream.room import Room
from indexcache.errors import ModelError


def block_scaled(rows, columns, block, scales="F32"):
    shape = (rows, columns)
    grid = grid_of(shape, block)
    headers = {"w": Tensor("F8_E4M3", shape, 0, 0), "s": Tensor(scales, grid, 0, 0)}
    return StoredParameter("w", headers, QuantisedWeight("w", shape, "w", "s", block))


class TestFormats:
    @pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
    def test_a_plain_tensor_is_rounded_once(self, dtype):
        values = torch.randn(5, 7)
        place = StoredParameter("w", {"w": Tensor(dtype, (5, 7), 0, 0)}, None)
        torch_type = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
        expected = values.to(torch_type)
        assert torch.equal(place.rounded(values), expected.float())
        assert place.contents(values) == {"w": expected.view(torch.uint8).numpy().tobytes()}

    @pytest.mark.parametrize("scales", ["F32", "BF16", "F8_E8M0", "U8"])
    def test_fp8_blocks_come_within_a_step_of_their_numbers(self, scales):
        """E4M3 has three bits of mantissa: a number is off by 1/16 of itself, above the block's smallest."""
        values = torch.randn(10, 13) * torch.logspace(-3, 3, 13)
        rounded = block_scaled(10, 13, (4, 8), scales).rounded(values)
        peaks = values.abs().max()
        assert torch.isfinite(rounded).all()
        worst = (rounded - values).abs()
        for row in range(0, 10, 4):
            for column in range(0, 13, 8):
                block = (slice(row, row + 4), slice(column, column + 8))
                peak = values[block].abs().max()
                # Numbers below 2^-6 of 448 are 2^-9 apart; a power of 2 as scale wastes a bit, bf16 some.
                allowed = (
                    values[block].abs() / 15 + peak / 448 * 2**-9 * 2 + (peak / 100 if scales == "BF16" else 0)
                )
                assert (worst[block] <= allowed).all()
        assert worst.max() < peaks

    def test_the_bytes_read_back_as_what_is_measured(self):
        place = block_scaled(6, 6, (4, 4))
        values = torch.randn(6, 6)
        contents = place.contents(values)
        codes = torch.frombuffer(bytearray(contents["w"]), dtype=torch.float8_e4m3fn).view(6, 6)
        scales = torch.frombuffer(bytearray(contents["s"]), dtype=torch.float32).view(2, 2)
        spread = scales.repeat_interleave(4, 0).repeat_interleave(4, 1)[:6, :6]
        assert torch.equal(codes.float() * spread, place.rounded(values))

    def test_zeros_stay_zeros(self):
        assert torch.equal(block_scaled(4, 4, (4, 4)).rounded(torch.zeros(4, 4)), torch.zeros(4, 4))


@pytest.mark.parametrize(
    "family", ["deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4", "mistral_large4", "dots3_note"]
)
def test_every_parameter_of_an_indexer_stands_in_a_tensor_of_its_own(checkpoints, family):
    """What the tensor holds is what the loaded model has there: transformers' renamings are followed."""
    checkpoint = open_checkpoint(str(checkpoints[family]))
    weights = find_weights(checkpoint)
    site = len(checkpoint.site_layers) - 1
    places = stored_indexers(checkpoint, weights, [site])[site]
    stored = load_file(weights.folder / weights.files[0])
    model = load_measured(checkpoint, weights, "float32", Room())
    _, indexers = expected_indexers(model, checkpoint.site_layers)
    loaded = dict(indexers[checkpoint.site_layers[site]].named_parameters())
    assert places.keys() == loaded.keys()
    for local, place in places.items():
        assert torch.equal(stored[place.name].float(), loaded[local].cpu())


def test_four_bit_indexers_are_refused_by_name(checkpoints, tmp_path):
    source = checkpoints["glm_moe_dsa"]
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    name = next(name for name in tensors if name.endswith("0.self_attn.indexer.wk.weight"))
    rows, columns = tensors[name].shape
    tensors[name] = torch.zeros(rows, columns // 2, dtype=torch.int8)
    tensors[f"{name}_scale_inv"] = torch.ones(rows, columns // 32)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises(ModelError, match=r"indexer's .*wk\.weight in I8"):
        stored_indexers(checkpoint, find_weights(checkpoint), [0])
