"""The kernel for FP8 blocks against its PyTorch reference, on a GPU or in Triton's interpreter: equal bits."""

import os
import subprocess
import sys

import pytest
import torch
from scaled_codes import codes_and_scales, same, weight

pytest.importorskip("triton", reason="Triton is not installed")

from indexcache.dsa.stream.formats.arithmetic import dequantised
from indexcache.dsa.stream.kernels import scale_blocks, scaled_blocks

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter computes with numpy, which has no bf16.
DTYPES = [torch.bfloat16, torch.float16, torch.float32] if ON_GPU else [torch.float16, torch.float32]
EVERY = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


def reference(codes, scales, block, dtype):
    return dequantised(weight(codes.shape, block), {"codes": codes, "scales": scales}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [(128, 128), (1, 32), (64, 100)], ids=str)
@pytest.mark.parametrize("shape", [(192, 448), (130, 1), (2, 70, 200)], ids=str)
def test_blocks_equal_the_reference(shape, block, dtype):
    codes, scales = codes_and_scales(shape, block)
    made = scaled_blocks(codes.to(DEVICE), scales.to(DEVICE), block, dtype).cpu()
    same(made, reference(codes, scales, block, dtype))


@pytest.mark.filterwarnings("ignore:overflow")  # numpy's word for what becomes infinite
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_under_every_power_of_two(dtype):
    codes = EVERY.expand(255, 256).contiguous()
    scales = torch.tensor([[2.0 ** (byte - 127)] for byte in range(255)])
    made = scaled_blocks(codes.to(DEVICE), scales.to(DEVICE), (1, 256), dtype).cpu()
    same(made, reference(codes, scales, (1, 256), dtype))


@pytest.mark.filterwarnings("ignore:overflow")
def test_one_scale_for_each_expert():
    codes = EVERY.repeat(40).view(2, 40, 128)
    scales = torch.tensor([0.3, 700.0]).view(2, 1, 1)
    made = scaled_blocks(codes.to(DEVICE), scales.to(DEVICE), (40, 128), torch.float16).cpu()
    same(made, reference(codes, scales, (40, 128), torch.float16))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(256, 128), (70, 200)], ids=["whole tiles", "ragged"])
@pytest.mark.parametrize("kind", ["float", "exponents"])
def test_experts_in_one_launch_are_made_in_what_they_are_fused_into(kind, shape, dtype):
    """Gates and ups of three experts, from codes and scales in one run of bytes, in the order of a file."""
    weights, rows = [codes_and_scales(shape, (128, 128), seed) for seed in range(6)], shape[0]
    if kind == "exponents":
        drawn = (torch.randint(0, 255, scales.shape, dtype=torch.uint8) for _, scales in weights)
        weights = [(codes, scales) for (codes, _), scales in zip(weights, drawn, strict=True)]
    run = torch.empty(6 * (8 << 10 | 128 << 10), dtype=torch.uint8, device=DEVICE)
    placed, start = [], 0
    for tensor in (part for pair in reversed(weights) for part in pair):
        place = run[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        placed.append(place.copy_(tensor))
        start += -(-tensor.nbytes // 64) * 64
    codes, scales = placed[-2::-2], placed[::-2]
    fused = torch.zeros(3, 2 * rows, shape[1], dtype=dtype, device=DEVICE)
    out = [fused[number // 2, number % 2 * rows :][:rows] for number in range(6)]
    scale_blocks(codes, scales, (128, 128), out)
    for made, (stored, scale) in zip(out, weights, strict=True):
        same(made.cpu(), reference(stored, scale, (128, 128), dtype))


def test_rows_that_stand_apart():
    codes, scales = codes_and_scales((130, 64), (128, 128))
    wide = torch.zeros(130, 192, device=DEVICE)
    scale_blocks([codes.to(DEVICE)], [scales.to(DEVICE)], (128, 128), [wide[:, 64:128]])
    same(wide[:, 64:128].cpu(), reference(codes, scales, (128, 128), torch.float32))
    assert not wide[:, :64].any()
    assert not wide[:, 128:].any()


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("shape", [(576, 448), (3, 300, 200)], ids=str)
def test_the_reference_uses_it_on_a_gpu(shape, monkeypatch):
    from indexcache.dsa.stream import kernels

    asked = []
    monkeypatch.setattr(kernels, "scaled_blocks", lambda *given: asked.append(1) or scaled_blocks(*given))
    codes, scales = codes_and_scales(shape, (128, 128))
    made = reference(codes.to(DEVICE), scales.to(DEVICE), (128, 128), torch.bfloat16).cpu()
    same(made, reference(codes, scales, (128, 128), torch.bfloat16))
    assert asked == [1]


# Where the interpreter is lenient the compiler is not: it took no integer for an e4m3 beyond an edge.
COMPILES = """
from indexcache.dsa.stream.kernels import _scaled_blocks as kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for generation, codes, scales, block, whole in (
    (90, "*fp8e4nv", "*fp32", (128, 128), True),
    (90, "*u8", "*fp32", (128, 128), False),
    (80, "*u8", "*u8", (1, 32), False),
):
    constants = dict(
        BLOCK_ROWS=block[0], BLOCK_COLUMNS=block[1], ROWS=128, COLUMNS=128, NATIVE=codes != "*u8",
        EXPONENTS=scales == "*u8", ALIGNED=whole, WHOLE_TILES=whole,
    )
    types = dict(codes=codes, scales=scales, out="*bf16", places="*i64")
    types |= dict.fromkeys(kernel.arg_names[4:9], "i32")
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    assert "cubin" in __import__("triton").compile(source, target=GPUTarget("cuda", generation, 32)).asm
print("compiled")
"""


@pytest.mark.skipif(ON_GPU, reason="the GPU runs what it compiles")
def test_it_compiles_for_gpus():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILES]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "compiled", ended.stderr[-2000:]
