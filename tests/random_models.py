"""Tiny random models of each family, and where the embedded trained one is."""

import copy
from pathlib import Path

import pytest
import torch
import transformers

import indexcache
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.load import Placement
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream.load import load_measured, load_whole
from indexcache.dsa.stream.room import Room

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
_INDEXED, _SLIDING, _LINEAR = "indexed_attention", "sliding_attention", "linear_attention"
_CSA = "compressed_sparse_attention"

# The families whose selections are token indices: their classes' name in transformers, and what configs them.
TOKEN_INDEX_FAMILIES = {
    "glm_moe_dsa": ("GlmMoeDsa", DIMENSIONS),
    "deepseek_v32": ("DeepseekV32", DIMENSIONS),
    "axk2": ("AXK2", {**_WITHOUT_DENSE, "n_group": None, "topk_group": None, "gated_norm_rank": 8}),
    "hy_v4": ("HYV4", {**_WITHOUT_DENSE, "hc_mult": 2, "indexer_types": ["full"] * LAYERS}),
    "hy_v4_vl": (
        "HYV4VL",
        {
            "text_config": {
                **_WITHOUT_DENSE,
                "hc_mult": 2,
                "indexer_types": ["full"] * LAYERS,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "out_hidden_size": 64,
                "max_image_size": 64,
            },
            "image_token_id": 4090,
            "video_token_id": 4091,
        },
    ),
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
            "image_token_index": 4090,
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
_GQA = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {
    **TOKEN_INDEX_FAMILIES,
    "glm5_next": (
        "Glm5Next",
        {
            "text_config": {
                **_WITHOUT_DENSE,
                "qk_rope_head_dim": 0,
                "layer_types": [_LINEAR, _INDEXED, _INDEXED, _LINEAR, _INDEXED, _INDEXED],
                "indexer_types": ["full"] * LAYERS,
                "linear_head_dim": 16,
                "linear_num_heads": 2,
                "hc_mult": 2,
                "index_kpool": 4,
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 32,
                "image_size": 28,
                "out_hidden_size": 64,
                "projection_intermediate_size": 32,
            },
            "image_token_id": 4090,
            "video_token_id": 4091,
            "image_start_token_id": 4092,
            "image_end_token_id": 4093,
            "video_start_token_id": 4094,
            "video_end_token_id": 4095,
        },
    ),
    "deepseek_v4": (
        "DeepseekV4",
        {
            **_GQA,
            "moe_intermediate_size": 32,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "q_lora_rank": 48,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "hc_mult": 2,
            "sliding_window": 16,
            "o_groups": 2,
            "o_lora_rank": 16,
            "index_n_heads": 16,
            "index_head_dim": 32,
            "index_topk": 4,
            "partial_rotary_factor": 0.25,
            "layer_types": [_SLIDING, _CSA, "heavily_compressed_attention", _CSA, _CSA, _CSA],
            "mlp_layer_types": ["hash_moe", *["moe"] * (LAYERS - 1)],
            "compress_rates": {_CSA: 4, "heavily_compressed_attention": 16},
        },
    ),
    "minimax_m3_vl": (
        "MiniMaxM3VL",
        {
            **_GQA,
            "intermediate_size": 32,
            "dense_intermediate_size": 96,
            "shared_intermediate_size": 32,
            "head_dim": 16,
            "rotary_dim": 8,
            "num_local_experts": 8,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_block_size": 8,
            "index_topk_blocks": 3,
            "index_local_blocks": 1,
            "layer_types": ["full_attention", *["minimax_m3_sparse"] * (LAYERS - 1)],
            "mlp_layer_types": ["dense", *["sparse"] * (LAYERS - 1)],
        },
    ),
    "qwen4_exp": (
        "Qwen4Exp",
        {
            **_GQA,
            "head_dim": 16,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts": 8,
            "hc_count": 2,
            "hc_lowrank": 16,
            "layer_types": [_LINEAR, _INDEXED, _LINEAR, _INDEXED, _INDEXED, _INDEXED],
            "ple_layer_ids": [1],
            "ple_embed_dim": 32,
            "ngram_size": 2,
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 97,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 1,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
    ),
}
_CONFIGS = {
    "dots3_note": "Dots3NoteTextConfig",
    "minimax_m3_vl": "MiniMaxM3VLTextConfig",
    "qwen4_exp": "Qwen4ExpTextConfig",
}
_MODELS = {
    "mistral_large4": "MistralLarge4ForConditionalGeneration",
    "glm5_next": "Glm5NextForConditionalGeneration",
    "hy_v4_vl": "HYV4VLForConditionalGeneration",
}
# Parameters that are constant when made, which would hide what they do.
_CONSTANT = ("sinks", "position_bias", "compress_ape", "compress_gate", "softmax_scaling", "conv1d.weight")

# What wraps a language model that stands alone above into its multimodal form.
_TOWERS = {
    "dots3_note": (
        "Dots3NoteConfig",
        "Dots3NoteForConditionalGeneration",
        {
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "adapter_in_dim": 32,
                "adapter_out_dim": 64,
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 16,
                "pyramid_num_routed": [2],
            },
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "downsample_hidden_size": 8,
                "feature_size": 16,
                "adapter_input_size": 32,
                "adapter_out_dim": 64,
            },
        },
    ),
    "minimax_m3_vl": (
        "MiniMaxM3VLConfig",
        "MiniMaxM3SparseForConditionalGeneration",
        {
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "projector_hidden_size": 32,
        },
    ),
    "qwen4_exp": (
        "Qwen4ExpConfig",
        "Qwen4ExpForConditionalGeneration",
        {
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
            },
        },
    ),
}
MULTIMODAL = ("mistral_large4", "glm5_next", "hy_v4_vl", *_TOWERS)


def class_names(family):
    name = FAMILIES[family][0]
    return _CONFIGS.get(family, f"{name}Config"), _MODELS.get(family, f"{name}ForCausalLM")


# Families of newer releases of transformers than the one that is installed.
LACKING = frozenset(
    family for family in FAMILIES if not all(hasattr(transformers, name) for name in class_names(family))
)


def settings_of(family, layers=LAYERS, **changes):
    """A config's keyword arguments; ``changes`` are of its language model."""
    settings = copy.deepcopy(FAMILIES[family][1])
    nested = settings.get("text_config", settings)
    nested.update(num_hidden_layers=layers, **changes)
    return settings


def build(family, layers=LAYERS, seed=0, **changes):
    """A random model in evaluation mode, fp32; skips the test where this transformers lacks the family."""
    if family in LACKING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(seed)
    config_name, model_name = class_names(family)
    config = getattr(transformers, config_name)(**settings_of(family, layers, **changes))
    return randomised(getattr(transformers, model_name)(config))


def build_multimodal(family, seed=0, **changes):
    """The same with the vision and audio towers of its multimodal checkpoints."""
    if family not in _TOWERS:
        return build(family, seed=seed, **changes)
    config, model, towers = _TOWERS[family]
    if not hasattr(transformers, model):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(seed)
    settings = copy.deepcopy(towers) | {"text_config": settings_of(family, **changes)}
    return randomised(getattr(transformers, model)(getattr(transformers, config)(**settings)))


def site_layers(family):
    """The layers of ``build(family)`` that own an indexer, as the model itself has them."""
    return tuple(find_indexers(build(family))[1])


def randomised(model):
    """``model`` in evaluation mode, fp32, without constant parameters."""
    for parameter_name, parameter in model.named_parameters():
        if any(name in parameter_name for name in _CONSTANT):
            torch.nn.init.normal_(parameter, std=0.5)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("tid2eid"):  # which experts a token goes to
            buffer.random_(0, 8)
    return model.float().eval().requires_grad_(False)


def measure(losses, patterns, ids):
    """Each pattern's summed loss on one window."""
    return losses.measure(patterns, [Window(tuple(ids), ids)])[0]


def load_checkpoint(checkpoint, dtype="auto", placement=Placement()):
    """A checkpoint's model, its weights looked for and loaded."""
    return load_whole(checkpoint, find_weights(checkpoint), dtype, placement)


def least_room(model):
    """Bytes of a device on which all layers of ``model`` stream: it has room for none beside what runs."""

    def size(module):
        return sum(value.numel() * value.element_size() for value in module.state_dict().values())

    layers = [size(layer) for layer in model.get_submodule(find_indexers(model)[0])]
    return size(model) - sum(layers) + 2 * max(layers) + min(layers) // 2


# A device on which all layers of the GLM checkpoints here stream, in fp32: as an option, and from files alone.
STREAMS = "2.9MB"
ALL_STREAM = Room(2_900_000, host=0)


def load_streamed(folder, room, dtype="auto"):
    """The model of the checkpoint in ``folder``, whose layers stream as far as they have no ``room``."""
    checkpoint = open_checkpoint(str(folder))
    return load_measured(checkpoint, find_weights(checkpoint), dtype, room)
