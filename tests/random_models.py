"""Tiny random models of each family, and where the embedded trained one is."""

import copy
from pathlib import Path

import torch
import transformers

import indexcache
from indexcache.dsa.losses import Window

ROOT = Path(indexcache.__file__).parent
EMBEDDED = ROOT / "recipes" / "tiny"

LAYERS = 6

# At least 16 index heads: with few, all ReLUs of a row can be off and scores tie exactly at zero.
DIMENSIONS = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 512,
    "index_topk": 16,
    "index_head_dim": 16,
    "index_n_heads": 16,
    "initializer_range": 0.1,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_WITHOUT_DENSE = {name: value for name, value in DIMENSIONS.items() if name != "first_k_dense_replace"}
_WITHOUT_Q_LORA = {name: value for name, value in DIMENSIONS.items() if name != "q_lora_rank"}
_INDEXED, _SLIDING = "indexed_attention", "sliding_attention"

# Families whose selections are token indices: their classes' name in transformers, and what configs them.
FAMILIES = {
    "glm_moe_dsa": ("GlmMoeDsa", DIMENSIONS),
    "deepseek_v32": ("DeepseekV32", DIMENSIONS),
}
TOKEN_INDEX_FAMILIES = {
    **FAMILIES,
    "axk2": ("AXK2", {**_WITHOUT_DENSE, "n_group": None, "topk_group": None, "gated_norm_rank": 8}),
    "hy_v4": ("HYV4", {**_WITHOUT_DENSE, "hc_mult": 2, "indexer_types": ["full"] * LAYERS}),
    "mistral_large4": (
        "MistralLarge4",
        {
            "text_config": {
                **_WITHOUT_Q_LORA,
                "num_hidden_layers": LAYERS,
                "no_rope_layers": [1, 1, 0, 1, 1, 0],
                "kv_source_layers": [0, 1, 2, 1, 1, 2],
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "patch_size": 14,
                "image_size": 28,
            },
            "image_token_index": 255,
        },
    ),
    "dots3_note": (
        "Dots3Note",
        {
            **_WITHOUT_DENSE,
            "shared_experts_intermediate_size": 32,
            "sliding_window": 16,
            "head_dim": 24,
            "layer_types": [_INDEXED, _INDEXED, _SLIDING, _SLIDING, _INDEXED, _INDEXED],
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 32,
            "swa_kv_lora_rank": 32,
            "swa_head_dim": 24,
            "swa_qk_nope_head_dim": 16,
            "swa_v_head_dim": 16,
        },
    ),
}
_CONFIGS = {"dots3_note": "Dots3NoteTextConfig"}
_MODELS = {"mistral_large4": "MistralLarge4ForConditionalGeneration"}


def build(family, layers=LAYERS, seed=0, **changes):
    """A random model in evaluation mode, fp32."""
    name, settings = TOKEN_INDEX_FAMILIES[family]
    settings = copy.deepcopy(settings)
    nested = settings.get("text_config", settings)
    nested.update(num_hidden_layers=layers, **changes)
    torch.manual_seed(seed)
    config = getattr(transformers, _CONFIGS.get(family, f"{name}Config"))(**settings)
    model = getattr(transformers, _MODELS.get(family, f"{name}ForCausalLM"))(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):  # zero when made, which would hide them
            torch.nn.init.normal_(parameter)
    return model.float().eval().requires_grad_(False)


def measure(losses, patterns, ids):
    """Each pattern's summed loss on one window."""
    return losses.measure(patterns, [Window(tuple(ids), ids)])[0]
