"""Parameters of the parts that decoders of several families are made of, by the numbers in a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Numbers(Protocol):
    """A config of transformers, read for its numbers and for what it says layer by layer."""

    compress_rates: Mapping[str, int]
    kv_sharing_modes: Sequence[str | None]
    layer_types: Sequence[str]
    mlp_layer_types: Sequence[str]
    no_rope_layers: Sequence[int]
    ple_layer_ids: Sequence[int]
    vision_feature_layer: int | Sequence[int]
    per_layer_config: Sequence[Numbers]
    text_config: Numbers
    vision_config: Numbers

    def __getattr__(self, name: str) -> int: ...


def linear(inputs: int, outputs: int, bias: int = False) -> int:
    """Parameters of a linear layer."""
    return outputs * (inputs + bool(bias))


def gated_mlp(hidden: int, width: int, bias: int = False) -> int:
    """Gate, up and down projections."""
    return 2 * linear(hidden, width, bias) + linear(width, hidden, bias)


def latent_attention(config: Numbers) -> int:
    """Multi-head latent attention (MLA) with low-rank queries, without its indexer."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
    queries, keys = config.q_lora_rank, config.kv_lora_rank
    key_width = config.qk_nope_head_dim + config.qk_rope_head_dim
    return (
        linear(hidden, queries, bias)
        + queries  # their norm
        + linear(queries, heads * key_width)
        + linear(hidden, keys + config.qk_rope_head_dim, bias)
        + keys  # their norm
        + linear(keys, heads * (config.qk_nope_head_dim + config.v_head_dim))
        + linear(heads * config.v_head_dim, hidden, bias)
    )


def lightning_indexer(config: Numbers) -> int:
    """An indexer on low-rank queries, its keys and their LayerNorm, and the weights of its heads."""
    return _indexer(config, config.q_lora_rank)


def indexer_on_states(config: Numbers) -> int:
    """An indexer on hidden states: a LayerNorm of its own, and a scale and a bias of each head's scores."""
    return _indexer(config, config.hidden_size) + 2 * config.hidden_size + 2 * config.index_n_heads


def _indexer(config: Numbers, query_width: int) -> int:
    heads, width, hidden = config.index_n_heads, config.index_head_dim, config.hidden_size
    return linear(query_width, heads * width) + linear(hidden, width) + 2 * width + linear(hidden, heads)


def experts(config: Numbers, count: int, width: int) -> int:
    """Routed experts and their router."""
    return count * gated_mlp(config.hidden_size, width) + count * config.hidden_size


def idle_experts(config: Numbers, count: int, width: int) -> int:
    """Parameters of the routed experts that a token does not go through."""
    return (count - config.num_experts_per_tok) * gated_mlp(config.hidden_size, width)


def idle_where_sparse(config: Numbers, layer: int) -> int:
    """Likewise in a layer of ``dense_or_experts``."""
    if config.mlp_layer_types[layer] != "sparse":
        return 0
    return idle_experts(config, config.num_local_experts, config.moe_intermediate_size)


def dense_or_experts(config: Numbers, layer: int) -> int:
    """A dense MLP, or routed experts and shared ones, as ``mlp_layer_types`` says."""
    if config.mlp_layer_types[layer] != "sparse":
        return gated_mlp(config.hidden_size, config.intermediate_size)
    shared_width = getattr(config, "shared_experts_intermediate_size", config.moe_intermediate_size)
    shared = gated_mlp(config.hidden_size, shared_width * config.n_shared_experts)
    return experts(config, config.num_local_experts, config.moe_intermediate_size) + shared


def hyper_connection(config: Numbers, mixes: int, scales: int) -> int:
    """One hyper-connection: ``mixes`` rows over all ``hc_mult`` streams, a base for each row, and some scales."""
    return mixes * config.hc_mult * config.hidden_size + mixes + scales
