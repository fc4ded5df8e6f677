"""Dequantised weights against float64, hand-written codes, transformers and compressed-tensors: equal bits."""

import pytest
import torch
from packed_integers import packed
from scaled_codes import codes_and_scales, same, weight

from indexcache.dsa.stream.formats.arithmetic import check_extents, dequantised
from indexcache.errors import ModelError

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def e4m3(byte):
    """What a byte means in FP8 e4m3, by its definition."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def e2m1(code):
    """What four bits mean in FP4 e2m1, by its definition."""
    sign, exponent, mantissa = -1.0 if code & 8 else 1.0, code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def product(codes, scales, block):
    """Codes times the scales of their blocks, element by element, in float64; then as fp32 has it."""
    row, column = torch.arange(codes.shape[-2]) // block[0], torch.arange(codes.shape[-1]) // block[1]
    return (codes.double() * scales.double()[..., row[:, None], column]).float()


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_fp8_number_under_every_exponent(dtype, as_bytes):
    every = torch.arange(256, dtype=torch.uint8)
    codes = every.view(torch.float8_e4m3fn).expand(256, 256).contiguous()
    scales = every[:, None].clone() if as_bytes else every[:, None].clone().view(torch.float8_e8m0fnu)
    made = dequantised(weight((256, 256), (1, 256)), {"codes": codes, "scales": scales}, dtype)
    numbers = torch.tensor([e4m3(byte) for byte in range(256)], dtype=torch.float64)
    powers = torch.tensor([2.0 ** (byte - 127) for byte in range(255)] + [float("nan")], dtype=torch.float64)
    same(made, (powers[:, None] * numbers).float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(576, 256), (192, 448), (256, 128), (130, 1), (1, 129), (3, 200, 300)], ids=str)
@pytest.mark.parametrize("block", [(128, 128), (1, 32), (64, 100)], ids=str)
def test_ragged_blocks_equal_float64(shape, block, dtype):
    codes, scales = codes_and_scales(shape, block)
    made = dequantised(weight(shape, block), {"codes": codes, "scales": scales}, dtype)
    same(made, product(codes, scales, block).to(dtype))


@pytest.mark.parametrize(("shape", "scales"), [((70, 50), ()), ((70, 50), (1,)), ((70, 50), (1, 1)), ((9,), ())])
def test_one_scale_for_a_tensor(shape, scales):
    codes, scale = torch.randn(shape).to(torch.float8_e4m3fn), torch.full(scales, 0.3)
    made = dequantised(weight(shape, None), {"codes": codes, "scales": scale}, torch.bfloat16)
    same(made, (codes.double() * scale.double().reshape(())).float().bfloat16())


def test_one_scale_for_each_expert():
    codes, scales = torch.randn(3, 70, 50).to(torch.float8_e5m2), torch.rand(3, 1, 1)
    made = dequantised(weight((3, 70, 50), (70, 50)), {"codes": codes, "scales": scales}, torch.float32)
    same(made, (codes.double() * scales.double()).float())


def test_fp4_of_every_byte():
    codes = torch.arange(256, dtype=torch.uint8).view(8, 32).view(torch.int8)
    scales = torch.arange(120, 136, dtype=torch.uint8).view(8, 2).view(torch.float8_e8m0fnu)
    made = dequantised(
        weight((8, 64), (1, 32), encoding="e2m1"), {"codes": codes, "scales": scales}, torch.bfloat16
    )
    numbers = [[e2m1(byte & 15), e2m1(byte >> 4)] for byte in range(256)]
    wanted = torch.tensor(numbers, dtype=torch.float64).view(8, 64)
    powers = torch.tensor([[2.0 ** (2 * row + half - 7) for half in (0, 1)] for row in range(8)])
    same(made, (wanted * powers.double().repeat_interleave(32, 1)).bfloat16())


@pytest.mark.parametrize("shape", [(256, 384), (2, 128, 256)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_and_fp4_as_transformers_has_them_where_blocks_divide(shape, dtype):
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    dequantise = getattr(getattr(integration, "Fp8Dequantize", None), "_dequantize_one", None)
    if dequantise is None or not hasattr(integration.Fp8Dequantize, "_unpack_fp4"):
        pytest.skip("this transformers dequantises in another way")
    theirs = integration.Fp8Dequantize(None)
    codes, scales = codes_and_scales(shape, (128, 128))
    made = dequantised(weight(shape, (128, 128)), {"codes": codes, "scales": scales}, dtype)
    same(made, theirs._dequantize_one(codes, scales, dtype))
    pairs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    exponents = torch.randint(110, 140, (*shape[:-1], shape[-1] // 16), dtype=torch.uint8)
    wide = (*shape[:-1], 2 * shape[-1])
    for kind in (torch.uint8, torch.float8_e8m0fnu):
        tensors = {"codes": pairs.view(torch.int8), "scales": exponents.view(kind)}
        made = dequantised(weight(wide, (1, 32), encoding="e2m1"), tensors, dtype)
        same(made, theirs._dequantize_one(tensors["codes"], tensors["scales"], dtype))


def integers(shape, bits, seed=0):
    least = -(1 << (bits - 1))
    return torch.randint(least, -least, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("columns", "group"), [(96, 32), (36, 12), (35, 35)])
@pytest.mark.parametrize("centred", [True, False])
def test_packed_integers_equal_float64(bits, columns, group, centred):
    rows, groups = 5, columns // group
    codes, zeros = integers((rows, columns), bits), integers((rows, groups), bits, seed=1) * (not centred)
    scales = torch.rand(rows, groups).bfloat16()
    tensors = {"codes": packed(codes, bits), "scales": scales, "zeros": packed(zeros.T, bits).T}
    parts = {"encoding": "integer", "bits": bits, "zeros": None if centred else "zeros"}
    made = dequantised(weight((rows, columns), (1, group), **parts), tensors, torch.bfloat16)
    wide = [grid.double().repeat_interleave(group, 1) for grid in (zeros, scales)]
    same(made, ((codes.double() - wide[0]) * wide[1]).bfloat16())


ORDERS = {
    "shuffled": [2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2],
    "never set": [-1] * 12,
    "unequal": [0] * 5 + [1] * 3 + [2] * 4,
    "too many": [0] * 4 + [1] * 4 + [3] * 4,
    "one not set": [-1] + [0] * 3 + [1] * 4 + [2] * 4,
}


@pytest.mark.parametrize("order", ORDERS)
def test_columns_in_an_order_of_their_own(order):
    codes, scales = integers((3, 12), 4), torch.rand(3, 3)
    tensors = {
        "codes": packed(codes, 4),
        "scales": scales,
        "order": torch.tensor(ORDERS[order], dtype=torch.int32),
    }
    parts = weight((3, 12), (1, 4), encoding="integer", bits=4, order="order")
    if order not in ("shuffled", "never set"):
        with pytest.raises(ModelError, match="order does not put 4 columns into each of 3 groups"):
            dequantised(parts, tensors, torch.float32)
        return
    groups = [column // 4 for column in range(12)] if order == "never set" else ORDERS[order]
    same(dequantised(parts, tensors, torch.float32), (codes.double() * scales.double()[:, groups]).float())


def test_another_extent_is_refused():
    parts = weight((3, 12), (1, 12), encoding="integer", bits=4, extent="extent")
    without = weight((3, 12), (1, 12))
    check_extents([without, parts], {"extent": torch.tensor([3, 12])})
    with pytest.raises(ModelError, match=r"extent says \[3, 11\], where codes and scales make \[3, 12\]"):
        check_extents([without, parts], {"extent": torch.tensor([3, 11])})
