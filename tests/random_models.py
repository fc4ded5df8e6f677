"""Tiny random models of each family, and where the embedded trained one is."""

from pathlib import Path

import torch
import transformers

import indexcache
from indexcache.dsa.losses import Window

ROOT = Path(indexcache.__file__).parent
EMBEDDED = ROOT / "recipes" / "tiny"

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

FAMILIES = {
    "glm_moe_dsa": (transformers.GlmMoeDsaConfig, transformers.GlmMoeDsaForCausalLM),
    "deepseek_v32": (transformers.DeepseekV32Config, transformers.DeepseekV32ForCausalLM),
}


def build(family, layers=6, seed=0, **changes):
    """A random model in evaluation mode, fp32."""
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(num_hidden_layers=layers, **{**DIMENSIONS, **changes})
    return model_class(config).float().eval().requires_grad_(False)


def measure(losses, patterns, ids):
    """Each pattern's summed loss on one window."""
    return losses.measure(patterns, [Window(tuple(ids), ids)])[0]
