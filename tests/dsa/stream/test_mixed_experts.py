"""A tiny DeepSeek-V4 with FP4 experts beside FP8: made plain here, it is what transformers itself makes of it."""

import eight_bit
import pytest
import torch
import transformers
from random_models import build
from safetensors.torch import load_file

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.shards import read_shards
from indexcache.dsa.stream.formats.recognise import check_tensors, checkpoint_format

SETTINGS = eight_bit.SETTINGS | {"scale_fmt": "ue8m0"}
# Kept plain in shipped ones: norms, gates, compressors, and the head.
_KEPT = ("norm", "gate", "compressor", "weights_proj", "embed", "head")


def mixed(tensors):
    """Random codes and exponents in place of the matrices: FP4 for experts, FP8 for the others."""
    generator = torch.Generator().manual_seed(4)

    def bytes_of(shape, least, end):
        return torch.randint(least, end, shape, dtype=torch.uint8, generator=generator)

    stored = {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if tensor.dim() != 2 or not name.endswith(".weight") or any(part in name for part in _KEPT):
            continue
        rows, columns = tensor.shape
        if ".experts." in name:
            stored[name] = bytes_of((rows, columns // 2), 0, 256).view(torch.int8)
            scales = bytes_of((rows, columns // 32), 118, 124)
        else:
            stored[name] = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
            scales = bytes_of((-(-rows // 128), -(-columns // 128)), 120, 126)
        stored[name.removesuffix("weight") + "scale"] = scales.view(torch.float8_e8m0fnu)
    return stored


@pytest.mark.parametrize("family", ["deepseek_v4"])
def test_weights_equal_those_of_transformers(family, tmp_path):
    source = tmp_path / "source"
    build(family, layers=2).bfloat16().save_pretrained(source)
    stored = mixed(load_file(source / "model.safetensors"))
    assert {torch.int8, torch.float8_e4m3fn} <= {tensor.dtype for tensor in stored.values()}
    folder = eight_bit.write(source, tmp_path / "mixed", stored, quantization_config=SETTINGS, expert_dtype="fp4")
    checkpoint = open_checkpoint(str(folder))
    known = checkpoint_format(checkpoint)
    assert known.words == "FP8 in 128 x 128 blocks, experts in FP4"
    check_tensors(checkpoint, read_shards(folder, ["model.safetensors"])[0].tensors, known)
    plain = eight_bit.write(source, tmp_path / "plain", known.plain(stored, torch.bfloat16))
    dequantise = transformers.FineGrainedFP8Config(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=dequantise
    ).state_dict()
    ours = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name].float(), theirs[name].float())]
    assert not different
    expert = next(name for name in ours if "experts" in name and ours[name].dim() == 3)
    assert len(ours[expert].unique()) > 15, "experts should have numbers of all FP4 codes"
