"""Checkpoints of the published sizes without a byte of weights: headers, and files that are holes."""

import json
from math import prod
from pathlib import Path

CONFIGS = Path(__file__).parent / "assets" / "configs"
_SIZES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
_BLOCK = 128


def glm_5():
    """The config of GLM-5 in bf16: 78 layers, an indexer in each. The one beside it is of its successor."""
    config = json.loads((CONFIGS / "glm_moe_dsa.json").read_text())
    later = ("indexer_types", "index_topk_freq", "index_skip_topk_offset", "quantization_config")
    return {name: value for name, value in config.items() if name not in later}


def write(folder, config, tensors, shards):
    """A checkpoint in ``folder`` of ``tensors``, name to dtype and shape, in files that take no room on a disk."""
    (folder / "config.json").write_text(json.dumps(config))
    names, places = list(tensors), {}
    for number in range(shards):
        file, header, end = f"model-{number + 1:05}-of-{shards:05}.safetensors", {}, 0
        for name in names[number::shards]:
            dtype, shape = tensors[name]
            size = _SIZES[dtype] * prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            places[name], end = file, end + size
        written = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(written).to_bytes(8, "little") + written)
            stream.truncate(8 + len(written) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def deepseek_v32_tensors(config):
    """Names, types and shapes of DeepSeek-V3.2 as published: FP8, scales, and a layer that predicts further."""
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    tensors = {
        "model.embed_tokens.weight": ("BF16", [vocabulary, hidden]),
        "model.norm.weight": ("BF16", [hidden]),
        "lm_head.weight": ("BF16", [vocabulary, hidden]),
    }
    for layer in range(layers + 1):
        for name, entry in _layer(config, layer).items():
            tensors[f"model.layers.{layer}.{name}"] = entry
    predicting = f"model.layers.{layers}."
    for name in ("embed_tokens.weight", "shared_head.head.weight"):
        tensors[predicting + name] = ("BF16", [vocabulary, hidden])
    tensors[predicting + "eh_proj.weight"] = ("BF16", [hidden, 2 * hidden])
    return tensors


def _layer(config, layer):
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    queries, rotated, plain = config["q_lora_rank"], config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    index_heads, index_width = config["index_n_heads"], config["index_head_dim"]
    matrices = {
        "self_attn.q_a_proj": (queries, hidden),
        "self_attn.q_b_proj": (heads * (plain + rotated), queries),
        "self_attn.kv_a_proj_with_mqa": (latent + rotated, hidden),
        "self_attn.kv_b_proj": (heads * (plain + config["v_head_dim"]), latent),
        "self_attn.o_proj": (hidden, heads * config["v_head_dim"]),
        "self_attn.indexer.wq_b": (index_heads * index_width, queries),
        "self_attn.indexer.wk": (index_width, hidden),
    }
    kept = {
        "input_layernorm.weight": [hidden],
        "post_attention_layernorm.weight": [hidden],
        "self_attn.q_a_layernorm.weight": [queries],
        "self_attn.kv_a_layernorm.weight": [latent],
        "self_attn.indexer.k_norm.weight": [index_width],
        "self_attn.indexer.k_norm.bias": [index_width],
        "self_attn.indexer.weights_proj.weight": [index_heads, hidden],
    }
    if layer < config["first_k_dense_replace"]:
        matrices |= _mlp("mlp", hidden, config["intermediate_size"])
    else:
        kept["mlp.gate.weight"] = [config["n_routed_experts"], hidden]
        for expert in range(config["n_routed_experts"]):
            matrices |= _mlp(f"mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
        matrices |= _mlp("mlp.shared_experts", hidden, config["moe_intermediate_size"])
    tensors = {name: ("BF16", shape) for name, shape in kept.items()}
    for name, (rows, columns) in matrices.items():
        tensors[f"{name}.weight"] = ("F8_E4M3", [rows, columns])
        tensors[f"{name}.weight_scale_inv"] = ("F32", [-(-rows // _BLOCK), -(-columns // _BLOCK)])
    return tensors


def _mlp(name, hidden, width):
    return {
        f"{name}.gate_proj": (width, hidden),
        f"{name}.up_proj": (width, hidden),
        f"{name}.down_proj": (hidden, width),
    }
