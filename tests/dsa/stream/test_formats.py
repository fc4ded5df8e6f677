"""Formats are told by config, held against headers, and made plain: a wrong load is refused by name and cause."""

import eight_bit
import packed_integers
import pytest
import torch
from safetensors.torch import load_file

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.shards import Tensor, read_shards
from indexcache.dsa.stream.formats.blocks import BlockScaled
from indexcache.dsa.stream.formats.compressed import CompressedTensors
from indexcache.dsa.stream.formats.foreign import Foreign
from indexcache.dsa.stream.formats.quantised import header
from indexcache.dsa.stream.formats.recognise import check_tensors, checkpoint_format, stored_format
from indexcache.errors import ModelError

FP8 = eight_bit.SETTINGS
INT4 = packed_integers.SETTINGS


def grouped(*weights, **settings):
    """A config of compressed-tensors with these schemes of weights."""
    groups = {
        f"group_{number}": {"targets": ["Linear"], "weights": scheme} for number, scheme in enumerate(weights)
    }
    return INT4 | {"config_groups": groups} | settings


def scheme(bits, kind, **more):
    return {"num_bits": bits, "type": kind, "symmetric": True, **more}


PACKED8 = scheme(8, "int", strategy="channel")
FLOAT_BLOCKS = scheme(8, "float", strategy="block", block_structure=[128, 128])


class TestRecognised:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (FP8, "FP8 in 128 x 128 blocks"),
            ({"quant_method": "fp8"}, "FP8 in 128 x 128 blocks"),
            (FP8 | {"weight_block_size": None}, "FP8 with one scale a tensor"),
            (FP8 | {"expert_dtype": "fp4", "scale_fmt": "ue8m0"}, "FP8 in 128 x 128 blocks, experts in FP4"),
            ({"quant_method": "mxfp8"}, "FP8 in 1 x 32 blocks"),
            (INT4, "compressed-tensors INT4 in groups of 32"),
            (grouped(PACKED8), "compressed-tensors INT8 with one scale a row"),
            (grouped(FLOAT_BLOCKS, format="float-quantized"), "compressed-tensors FP8 in 128 x 128 blocks"),
            (grouped(scheme(8, "int"), format="int-quantized"), "compressed-tensors INT8 with one scale a tensor"),
            (
                grouped(scheme(4, "int", group_size=128), scheme(8, "int", group_size=-1)),
                "compressed-tensors INT4 in groups of 128 and INT8 with one scale a row",
            ),
        ],
        ids=str,
    )
    def test_as_what_is_made_plain_here(self, settings, words):
        assert stored_format(settings, "m").words == words

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"quant_method": "gptq", "bits": 4}, "gptq"),
            ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
            ({"load_in_4bit": True}, "bitsandbytes"),
            (
                grouped(scheme(4, "float"), format="nvfp4-pack-quantized"),
                "compressed-tensors nvfp4-pack-quantized",
            ),
            (grouped(scheme(3, "int", group_size=32)), "compressed-tensors pack-quantized"),
            (INT4 | {"transform_config": {"R1": {}}}, "compressed-tensors pack-quantized"),
            (INT4 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "compressed-tensors pack-quantized"),
            (INT4 | {"config_groups": {"W4A16": ["Linear"]}}, "compressed-tensors pack-quantized"),
            (grouped(scheme(4, "int", strategy=["group"])), "compressed-tensors pack-quantized"),
            (grouped(scheme(4, "int", strategy="group")), "compressed-tensors pack-quantized"),
        ],
        ids=str,
    )
    def test_as_foreign(self, settings, words):
        known = stored_format(settings, "m")
        assert isinstance(known, Foreign)
        assert known.words == words

    def test_as_plain(self):
        assert stored_format(None, "m") is None

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"bits": 4}, "has no quant_method"),
            (FP8 | {"weight_block_size": [128]}, "no two positive integers"),
            (FP8 | {"weight_block_size": [0, 128]}, "no two positive integers"),
        ],
    )
    def test_as_none_at_all(self, settings, says):
        with pytest.raises(ModelError, match=says):
            stored_format(settings, "m")


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"quant_method": "gptq", "bits": 4}, "needs a package that is not here", "pip install optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "needs a package that is not here", "pip install gptqmodel"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "'modelopt NVFP4', which transformers", "bfloat16"),
        ({"quant_method": "nvfp4"}, "cannot be read here", "bfloat16, FP8 blocks or compressed-tensors INT4"),
    ],
)
def test_foreign_formats_that_cannot_be_loaded(settings, says, hint):
    with pytest.raises(ModelError, match=says) as caught:
        stored_format(settings, "m").quantiser()
    assert hint in caught.value.hint


def fp8_layer():
    """A layer in FP8: a ragged weight, one that blocks divide, a plain one, and scales of activations."""
    tensors, plain = eight_bit.in_eight_bits(
        {"x.weight": torch.randn(576, 256), "y.weight": torch.randn(192, 448), "norm.weight": torch.ones(4)}
    )
    return tensors | {"x.input_scale": torch.ones(1), "attn.k_scale": torch.ones(1)}, plain


def fp4_layer():
    """Experts in FP4 beside FP8, named and laid out as DeepSeek-V4 has it."""
    tensors, plain = eight_bit.in_eight_bits({"wq.weight": torch.randn(130, 256)}, "scale")
    tensors["wq.scale"] = torch.tensor([[1.0, 0.5], [2.0, 4.0]]).to(torch.float8_e8m0fnu)
    plain["wq.weight"] = eight_bit.dequantised(tensors["wq.weight"], tensors["wq.scale"].float())
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    scales = torch.full((16, 1), 128, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    tensors |= {"w1.weight": codes.view(torch.int8), "w1.scale": scales, "hc_attn.scale": torch.ones(3)}
    halves = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).double()
    sign, exponent, mantissa = halves // 8, halves // 2 % 4, halves % 2
    size = torch.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2 ** (exponent - 1))
    plain["w1.weight"] = (2 * torch.where(sign == 1, -size, size)).bfloat16()
    return tensors, plain | {"hc_attn.scale": tensors["hc_attn.scale"]}


def int4_layer():
    return packed_integers.in_packed_integers({"mlp.x.weight": torch.randn(9, 96), "norm.weight": torch.ones(4)})


LAYERS = {"fp8": (FP8, fp8_layer), "fp4": (FP8, fp4_layer), "int4": (INT4, int4_layer)}


def headers(tensors):
    return {name: header(tensor) for name, tensor in tensors.items()}


class TestLayers:
    @pytest.mark.parametrize("name", LAYERS)
    def test_become_their_plain_twins(self, name):
        settings, layer = LAYERS[name]
        tensors, plain = layer()
        made = stored_format(settings, "m").plain(tensors, torch.bfloat16)
        assert not tensors, "all should be taken out, so that they can be freed"
        assert made.keys() == plain.keys()
        for weight, tensor in made.items():
            assert torch.equal(tensor, plain[weight]), f"{weight} has other numbers"

    @pytest.mark.parametrize("name", LAYERS)
    def test_have_the_shapes_that_headers_foretell(self, name):
        settings, layer = LAYERS[name]
        tensors, _ = layer()
        known = stored_format(settings, "m")
        foretold = known.plain_shapes(headers(tensors), "BF16")
        made = known.plain(tensors, torch.bfloat16)
        assert foretold == {
            weight: (header(tensor).dtype, header(tensor).shape) for weight, tensor in made.items()
        }

    def test_that_say_another_shape_are_refused(self):
        tensors, _ = int4_layer()
        tensors["mlp.x.weight_shape"] = torch.tensor([9, 95])
        with pytest.raises(ModelError, match=r"mlp\.x\.weight_shape says \[9, 95\]"):
            stored_format(INT4, "m").plain(tensors, torch.bfloat16)

    def test_of_fp4_in_its_own_type_count_numbers(self):
        pairs = torch.zeros(4, 16, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        assert header(pairs) == Tensor("F4", (4, 32), 0, 64)
        tensors = {"w.weight": pairs, "w.scale": torch.ones(4, 1)}
        assert stored_format(FP8, "m").plain(tensors, torch.bfloat16)["w.weight"].shape == (4, 32)


def refusal(settings, changes, layer):
    """What is said of a layer's headers after ``changes``: name to (dtype, shape), or None to leave one out."""
    stored = headers(layer()[0])
    for name, change in changes.items():
        stored.pop(name, None)
        if change is not None:
            stored[name] = Tensor(change[0], change[1], 0, 0)
    with pytest.raises(ModelError) as caught:
        stored_format(settings, "m").check(stored)
    return caught.value.line()


class TestRefusedOfBlocks:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            (
                {"x.weight_scale_inv": ("F32", (4, 2))},
                "scales x.weight_scale_inv of 'm' have the shape [4, 2], where [576, 256] in blocks of 128 x 128 "
                "needs [5, 2]",
            ),
            ({"x.weight_scale_inv": None}, "holds x.weight in F8_E4M3 without scales"),
            (
                {"x.weight_scale_inv": None, "x.weight_scale": ("F32", (5, 2))},
                "(weight_scale_inv, scale, qscale_weight); x.input_scale and 1 more stand beside it",
            ),
            ({"x.scale": ("F32", (5, 2))}, "holds two scales for x.weight: x.weight_scale_inv and x.scale"),
            ({"x.weight": ("BF16", (576, 256))}, "scales x.weight_scale_inv beside x.weight in BF16"),
            ({"x.weight_scale_inv": ("I32", (5, 2))}, "the scales x.weight_scale_inv in I32"),
            ({"x.weight": ("I8", (576, 256))}, "[576, 256] in blocks of 1 x 32 needs [576, 16]"),
            ({"z": ("U8", (3,))}, "holds z in U8, which no weight in FP8 in 128 x 128 blocks is made of"),
            ({"x.weight": ("F8_E4M3FNUZ", (576, 256))}, "x.weight_scale_inv beside x.weight in F8_E4M3FNUZ"),
            (
                {"x.weight": None, "x.weight_scale_inv": ("F8_E8M0", (5, 2))},
                "x.weight_scale_inv in F8_E8M0, which no weight in",
            ),
        ],
        ids=str,
    )
    def test_tensors(self, changes, says):
        assert says in refusal(FP8, changes, fp8_layer)

    @pytest.mark.parametrize("block", [[64, 64], None], ids=str)
    def test_blocks_of_another_config(self, block):
        line = refusal(FP8 | {"weight_block_size": block}, {}, fp8_layer)
        assert "weight_block_size in config.json is not that of the weights" in line

    @pytest.mark.parametrize(
        ("shape", "right"), [((8, 1, 1), True), ((8, 2, 1), False), ((1, 1), True), ((4, 1, 1), False)]
    )
    def test_scales_of_experts_in_one_tensor(self, shape, right):
        stored = {
            "experts.down_proj": Tensor("F8_E4M3", (8, 256, 128), 0, 0),
            "experts.down_proj_scale_inv": Tensor("F32", shape, 0, 0),
        }
        known = stored_format(FP8 | {"weight_block_size": None}, "m")
        if right:
            assert known.plain_shapes(stored) == {"experts.down_proj": ("BF16", (8, 256, 128))}
            return
        with pytest.raises(ModelError, match="in one block needs"):
            known.check(stored)


class TestRefusedOfCompressedTensors:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"mlp.x.weight_scale": None}, "holds mlp.x.weight_packed in I32 and no scales mlp.x.weight_scale"),
            ({"mlp.x.weight_scale": ("U8", (9, 3))}, "and scales in U8"),
            ({"mlp.x.weight_scale": ("BF16", (9, 4))}, "with scales [9, 4], which can be read as none of what"),
            ({"mlp.x.weight_packed": ("I32", (9, 24))}, "I32 [9, 24] with scales [9, 3]"),
            ({"mlp.x.weight_shape": ("I64", (3,))}, "mlp.x.weight_shape of 'm' is I64 [3]"),
            ({"mlp.x.weight_g_idx": ("I32", (95,))}, "mlp.x.weight_g_idx of 'm' is I32 [95]"),
            ({"mlp.x.weight_zero_point": ("I32", (9, 3))}, "where mlp.x.weight_packed needs integers [2, 3]"),
            ({"y.weight": ("F8_E4M3", (9, 96))}, "holds y.weight in F8_E4M3 and no scales"),
            ({"norm.weight_scale": ("BF16", (1,))}, "scales norm.weight_scale beside norm.weight in F32"),
        ],
        ids=str,
    )
    def test_tensors(self, changes, says):
        assert says in refusal(INT4, changes, int4_layer)

    @pytest.mark.parametrize(
        ("more", "part"), [({"symmetric": False}, "zero_point"), ({"actorder": "group"}, "g_idx")]
    )
    def test_what_the_config_promises(self, more, part):
        settings = grouped(scheme(4, "int", group_size=32) | more)
        assert f"holds mlp.x.weight_packed without mlp.x.weight_{part}, which its config" in refusal(
            settings, {}, int4_layer
        )

    def test_schemes_that_cannot_be_told_apart(self):
        settings = grouped(scheme(4, "int", group_size=32), scheme(8, "int", group_size=16))
        assert "can be read as more than one of what" in refusal(settings, {}, int4_layer)


# What the package writes for a weight of 192 x 256, and how its config names that.
COMPRESSIONS = {
    "INT4 in groups": ("pack-quantized", scheme(4, "int", strategy="group", group_size=32)),
    "INT4 in groups, zero points": (
        "pack-quantized", scheme(4, "int", strategy="group", group_size=32) | {"symmetric": False}
    ),
    "INT8 packed, a row": ("pack-quantized", scheme(8, "int", strategy="channel")),
    "INT8 packed, zero points": ("pack-quantized", scheme(8, "int", strategy="channel") | {"symmetric": False}),
    "INT8 a row": ("int-quantized", scheme(8, "int", strategy="channel")),
    "INT8 a tensor, zero points": ("int-quantized", scheme(8, "int", strategy="tensor") | {"symmetric": False}),
    "FP8 a tensor": ("float-quantized", scheme(8, "float", strategy="tensor")),
    "FP8 a row": ("float-quantized", scheme(8, "float", strategy="channel")),
    "FP8 in blocks": ("float-quantized", FLOAT_BLOCKS),
    "FP8 in groups": ("naive-quantized", scheme(8, "float", strategy="group", group_size=64)),
}  # fmt: skip
GRIDS = {"group": lambda size: (192, 256 // size), "channel": lambda _: (192, 1), "tensor": lambda _: (1,)}


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_as_the_package_compressed_tensors_has_it(name, dtype):
    """Scales are in the type of the model, as the package multiplies in theirs."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    form, weights = COMPRESSIONS[name]
    grid = GRIDS.get(weights["strategy"], lambda _: (2, 2))(weights.get("group_size"))
    generator = torch.Generator().manual_seed(3)
    state = {"weight": torch.randn(192, 256, generator=generator, dtype=torch.float32).to(dtype)}
    most = 448 if weights["type"] == "float" else 2 ** (weights["num_bits"] - 1)
    state["weight_scale"] = ((2 + torch.rand(grid, generator=generator)) / most).to(dtype)
    if not weights["symmetric"]:
        zeros = torch.randint(-most // 2, most // 2, grid, generator=generator)
        state["weight_zero_point"] = zeros.to(torch.int8)
    theirs = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, theirs)
    wanted = compressor.decompress(dict(stored), theirs)["weight"]
    known = stored_format(grouped(weights, format=form), "m")
    assert isinstance(known, CompressedTensors)
    made = known.plain({f"mlp.{part}": tensor for part, tensor in stored.items()}, dtype)
    assert made.keys() == {"mlp.weight"}
    assert torch.equal(made["mlp.weight"], wanted)


@pytest.fixture(scope="module", params=["fp8", "int4"])
def folders(request, tmp_path_factory):
    """A quantised checkpoint with ragged blocks and a layer that predicts further tokens, and its plain twin."""
    more = {}
    if request.param == "int4":
        more = {"settings": INT4, "quantise": packed_integers.in_packed_integers}
    folder = tmp_path_factory.mktemp("ragged")
    return eight_bit.make(folder, predicts=True, **more, **eight_bit.RAGGED)


class TestCheckpoints:
    def test_are_their_plain_twins_bit_for_bit(self, folders):
        known = checkpoint_format(open_checkpoint(str(folders[0])))
        tensors, twin = (load_file(folder / "model.safetensors") for folder in folders)
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        if isinstance(known, BlockScaled):
            assert {(576, 256), (192, 256), (256, 192), (384, 448)} <= shapes
        made = known.plain(tensors, torch.bfloat16)
        assert made.keys() == twin.keys()
        assert all(torch.equal(made[name], twin[name]) for name in twin)

    def test_pass_by_their_headers_alone(self, folders):
        checkpoint = open_checkpoint(str(folders[0]))
        (shard,) = read_shards(folders[0], ["model.safetensors"])
        (twin,) = read_shards(folders[1], ["model.safetensors"])
        known = checkpoint_format(checkpoint)
        check_tensors(checkpoint, shard.tensors, known)
        plain = {name: (tensor.dtype, tensor.shape) for name, tensor in twin.tensors.items()}
        assert known.plain_shapes(shard.tensors) == plain

    def test_may_hold_anything_in_a_layer_that_nobody_reads(self, folders):
        """A layer behind the decoder's, known by its parts, is not held against the format."""
        checkpoint = open_checkpoint(str(folders[0]))
        (shard,) = read_shards(folders[0], ["model.safetensors"])
        extra = {"model.layers.2.eh_proj.codes": Tensor("F8_E4M3", (3, 3), 0, 9)}
        check_tensors(checkpoint, {**shard.tensors, **extra}, checkpoint_format(checkpoint))
        inside = {"model.layers.1.eh_proj.codes": Tensor("F8_E4M3", (3, 3), 0, 9)}
        with pytest.raises(ModelError, match=r"model\.layers\.1\.eh_proj\.codes"):
            check_tensors(checkpoint, {**shard.tensors, **inside}, checkpoint_format(checkpoint))

    def test_that_are_plain_by_their_config_hold_no_small_numbers(self, folders):
        checkpoint = open_checkpoint(str(folders[1]))
        assert checkpoint_format(checkpoint) is None
        small = {"model.layers.1.x.weight": Tensor("I8", (3, 3), 0, 9)}
        with pytest.raises(ModelError, match="holds I8 tensors"):
            check_tensors(checkpoint, small, None)

    @pytest.mark.parametrize("eight", [True, False])
    def test_of_no_known_type_are_named(self, folders, eight):
        checkpoint = open_checkpoint(str(folders[0 if eight else 1]))
        stored = {"model.layers.1.x.weight": Tensor("Q7", (3, 3), 0, 9), "b": Tensor("Q7", (3, 3), 9, 18)}
        with pytest.raises(
            ModelError, match=r"holds model\.layers\.1\.x\.weight and 1 more in Q7, which is no type"
        ):
            check_tensors(checkpoint, stored, checkpoint_format(checkpoint))

    def test_of_a_foreign_format_of_integers_hold_no_fp8(self, folders):
        checkpoint = open_checkpoint(str(folders[1]))
        known = Foreign("m", "gptq", {})
        name = "model.layers.1.x.weight"
        check_tensors(checkpoint, {name: Tensor("I8", (3, 3), 0, 9)}, known)
        with pytest.raises(ModelError, match="names the format 'gptq'"):
            check_tensors(checkpoint, {name: Tensor("F8_E4M3", (3, 3), 0, 9)}, known)
