"""Tiny checkpoints in FP8 as DeepSeek-V3.2 and GLM-5 are stored, and the same dequantised."""

import json
import shutil

import torch
from random_models import EMBEDDED, build
from safetensors.torch import load_file, save_file

BLOCK = 128
# Every matrix divides into blocks of 128 x 128; kv_a_proj has kv_lora_rank + qk_rope_head_dim rows.
DIVIDING = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128, "n_routed_experts": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 128, "q_lora_rank": 128,
    "qk_rope_head_dim": 128, "qk_nope_head_dim": 128, "v_head_dim": 128, "index_head_dim": 128,
}  # fmt: skip
# Blocks do not divide kv_a_proj, of 576 rows as shipped, nor experts of 192 rows, nor q_b_proj of 448 columns.
RAGGED = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "q_lora_rank": 448, "moe_intermediate_size": 192}
SETTINGS = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]
}  # fmt: skip
_KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight", "weights_proj", "eh_proj", "shared_head")


def quantised(weight):
    """``weight`` [n, k] as e4m3 and its scales [ceil(n / 128), ceil(k / 128)]."""
    rows, columns = weight.shape
    high, wide = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = torch.zeros(high * BLOCK, wide * BLOCK)
    padded[:rows, :columns] = weight.float()
    blocks = padded.view(high, BLOCK, wide, BLOCK)
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / 448
    small = (blocks / scales[:, None, :, None]).view_as(padded)[:rows, :columns]
    return small.clamp(-448, 448).to(torch.float8_e4m3fn).contiguous(), scales.contiguous()


def dequantised(weight, scales, dtype=torch.bfloat16):
    """What ``quantised`` stands for."""
    rows, columns = weight.shape
    wide = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (weight.float() * wide).to(dtype)


def in_eight_bits(tensors, scale="weight_scale_inv"):
    """FP8 tensors with scales of that name, and their dequantised twins."""
    stored, plain = {}, {}
    for name, tensor in tensors.items():
        stored[name] = plain[name] = tensor
        if tensor.dim() == 2 and name.endswith(".weight") and not any(part in name for part in _KEPT):
            stored[name], scales = quantised(tensor)
            stored[name.removesuffix("weight") + scale] = scales
            plain[name] = dequantised(stored[name], scales)
    return stored, plain


def with_predicting_layer(tensors, layers):
    """The tensors, and those of a layer behind the decoder's ``layers`` that predicts the token after next."""
    last = f"model.layers.{layers - 1}."
    behind = {
        name.replace(last, f"model.layers.{layers}."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    hidden = tensors["model.norm.weight"].shape[0]
    joint = {f"{part}.weight": torch.ones(hidden) for part in ("enorm", "hnorm", "shared_head.norm")}
    joint["eh_proj.weight"] = torch.ones(hidden, 2 * hidden)
    joint |= {"embed_tokens.weight": tensors["model.embed_tokens.weight"].clone()}
    joint |= {"shared_head.head.weight": tensors["lm_head.weight"].clone()}
    return tensors | behind | {f"model.layers.{layers}.{name}": part.bfloat16() for name, part in joint.items()}


def write(source, folder, tensors, **config):
    """A checkpoint of ``tensors``, its config that of ``source`` with changes; None removes a key."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder / name)
    document = json.loads((source / "config.json").read_text()) | config
    document = {name: value for name, value in document.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(document))
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make(
    folder,
    family="deepseek_v32",
    scale="weight_scale_inv",
    settings=SETTINGS,
    quantise=None,
    predicts=False,
    layers=2,
    **changes,
):
    """Folders of a quantised checkpoint and its bf16 twin, with a tensor an expert.

    Args:
        folder: where both are put.
        family: of the model.
        scale: the name of the scales.
        settings: the ``quantization_config``.
        quantise: gives stored and plain tensors; FP8 in blocks where it is None.
        predicts: whether there is a layer behind the decoder's, which predicts the token after next.
        layers: of the decoder.
        changes: of the dimensions.
    """
    source = folder / "source"
    build(family, layers=layers, **(DIVIDING | changes)).bfloat16().save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    if predicts:
        tensors = with_predicting_layer(tensors, layers)
    stored, plain = in_eight_bits(tensors, scale) if quantise is None else quantise(tensors)
    eight = write(source, folder / "fp8", stored, quantization_config=settings)
    return eight, write(source, folder / "plain", plain)
