"""Integers packed into 32 bits by hand, as compressed-tensors stores them, and what they stand for."""

import torch

SETTINGS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
}


def packed(integers, bits):
    """Signed integers ``[n, k]`` as int32 ``[n, ceil(k bits / 32)]``, with Python's own integers."""
    rows = []
    for row in integers.tolist():
        line = sum((value + (1 << (bits - 1))) << (bits * place) for place, value in enumerate(row))
        words = [(line >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(row) * bits // 32))]
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def quantised(weight, bits=4, group=32):
    """``weight`` [n, k] as integers of that many bits, packed, and bf16 scales [n, k / group]."""
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // group, group)
    most = (1 << (bits - 1)) - 1
    scales = (groups.abs().amax(-1).clamp(min=1e-6) / most).bfloat16()
    integers = (groups / scales.float()[..., None]).round().clamp(-most - 1, most).int().view(rows, columns)
    return integers, scales


def in_packed_integers(tensors):
    """Experts and dense layers in INT4 in groups of 32, and their dequantised twins."""
    stored, plain = {}, {}
    for name, tensor in tensors.items():
        stored[name] = plain[name] = tensor
        if "mlp." in name and "gate.weight" not in name and tensor.dim() == 2:
            integers, scales = quantised(tensor)
            del stored[name]
            stored[f"{name}_packed"], stored[f"{name}_scale"] = packed(integers, 4), scales
            stored[f"{name}_shape"] = torch.tensor(tensor.shape)
            plain[name] = (integers.double() * scales.double().repeat_interleave(32, 1)).bfloat16()
    return stored, plain
