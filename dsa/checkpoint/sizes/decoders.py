"""Parameters of each family's decoder, layer by layer, as transformers' modules have them.

Figures follow the ``__init__`` of 5.18's to 5.24's ``modeling_*.py``. Tests hold them against the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from packaging.version import Version

from ....system.versions import library_versions
from .parts import (
    Numbers,
    dense_or_experts,
    experts,
    gated_mlp,
    hyper_connection,
    idle_experts,
    idle_where_sparse,
    indexer_on_states,
    latent_attention,
    lightning_indexer,
    linear,
)

OfLayer = Callable[[Numbers, int], int]
"""Parameters in one layer, by the config of the language model and the layer's id."""


@dataclass(frozen=True)
class Decoder:
    """Parameters of a decoder, without the token embedding and the output head.

    Args:
        attention: of a layer, without an indexer.
        indexer: of a layer that owns one.
        feed_forward: of a layer.
        idle: of the layer's routed experts that a token does not go through.
        beside: of what else is in every layer, its norms above all.
        behind: of what stands behind the layers or beside them all: the last norm, and what merges streams.
    """

    attention: OfLayer
    indexer: OfLayer
    feed_forward: OfLayer = dense_or_experts
    idle: OfLayer = idle_where_sparse
    beside: OfLayer = lambda config, layer: 2 * config.hidden_size
    behind: Callable[[Numbers], int] = lambda config: config.hidden_size


def _latent(config: Numbers, layer: int) -> int:
    return latent_attention(config)


def _lightning(config: Numbers, layer: int) -> int:
    return lightning_indexer(config)


def _axk2_attention(config: Numbers, layer: int) -> int:
    """One projection makes queries and gates of values, from both halves of what the others halve."""
    heads, queries = config.num_attention_heads, config.q_lora_rank
    key_width = config.qk_nope_head_dim + config.qk_rope_head_dim
    gated = linear(2 * queries, heads * (key_width + config.v_head_dim))
    return latent_attention(config) - linear(queries, heads * key_width) + gated


def _axk2_norms(config: Numbers, layer: int) -> int:
    """Norms gated through a low rank: before attention, and before experts."""
    gated_norms = 2 if config.mlp_layer_types[layer] == "sparse" else 1
    return 2 * config.hidden_size + gated_norms * 2 * linear(config.hidden_size, config.gated_norm_rank)


def _hy_v4_attention(config: Numbers, layer: int) -> int:
    heads = config.num_attention_heads
    gate, sinks = linear(config.hidden_size, heads * config.v_head_dim), heads
    return latent_attention(config) + gate + sinks


def _two_way_connections(config: Numbers, layer: int) -> int:
    return 2 * config.hidden_size + 2 * hyper_connection(config, 2 * config.hc_mult, 2)


def _three_way_connections(config: Numbers, layer: int) -> int:
    return 2 * config.hidden_size + 2 * hyper_connection(config, (2 + config.hc_mult) * config.hc_mult, 3)


def _weighted_head(config: Numbers) -> int:
    return config.hidden_size + hyper_connection(config, config.hc_mult, 1)


def _mistral_attention(config: Numbers, layer: int) -> int:
    """Queries of full rank; layers without rotation keep no rotated key, and some read another layer's keys."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
    keys, rotated, plain = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    if not config.no_rope_layers[layer]:
        rotated, plain = 0, plain + rotated
    reads_others = config.kv_sharing_modes[layer] in ("reuse", "reuse_but_indexer")
    return (
        (0 if reads_others else linear(hidden, keys + rotated, bias) + keys)
        + linear(keys, heads * (plain + config.v_head_dim))
        + linear(heads * config.v_head_dim, hidden, bias)
        + linear(hidden, heads * (config.qk_nope_head_dim + config.qk_rope_head_dim))
        + 2 * heads  # a scale and a bias of each head's scores
    )


def _mistral_behind(config: Numbers) -> int:
    # 5.24 learns a factor for each frequency, which 5.23 kept as a constant.
    learns_rotation = Version(library_versions()["transformers"]).release >= (5, 24)
    return config.hidden_size + (config.qk_rope_head_dim // 2 if learns_rotation else 0)


def _dots_attention(config: Numbers, layer: int) -> int:
    """Sliding layers have widths of their own; the rotated key has a norm, and each head a gate."""
    config = config.per_layer_config[layer]
    gates = linear(config.hidden_size, config.num_attention_heads)
    return latent_attention(config) + config.qk_rope_head_dim + gates


def _dots_indexer(config: Numbers, layer: int) -> int:
    return lightning_indexer(config.per_layer_config[layer])


def _glm5_next_attention(config: Numbers, layer: int) -> int:
    if config.layer_types[layer] != "linear_attention":
        return latent_attention(config)
    hidden, heads, head_width = config.hidden_size, config.linear_num_heads, config.linear_head_dim
    width = heads * head_width
    low_rank_gate = linear(hidden, head_width) + linear(head_width, width)
    return (
        3 * linear(hidden, width)
        + 3 * width * config.linear_conv_kernel_dim
        + low_rank_gate  # of what is forgotten, with a bias and a rate of each head
        + width
        + heads
        + linear(hidden, heads)
        + low_rank_gate  # of the output
        + head_width  # its norm
        + linear(width, hidden)
    )


def _pooling_indexer(config: Numbers, layer: int) -> int:
    pooling = config.index_kpool * config.index_head_dim + linear(config.hidden_size, config.index_head_dim)
    return lightning_indexer(config) + pooling


def _compressor(config: Numbers, width: int, rate: int) -> int:
    """Keys and gates of ``rate`` tokens each, and a bias for their positions in it; the norm is not counted."""
    return 2 * linear(config.hidden_size, width) + rate * width


def _deepseek_v4_attention(config: Numbers, layer: int) -> int:
    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    queries, grouped = config.q_lora_rank, config.o_groups * config.o_lora_rank
    kind, rates = config.layer_types[layer], config.compress_rates
    compressor = 0
    if kind == "heavily_compressed_attention":
        compressor = _compressor(config, width, rates[kind]) + width
    elif kind == "compressed_sparse_attention":
        compressor = _compressor(config, 2 * width, rates[kind]) + width
    return (
        linear(hidden, queries)
        + queries
        + linear(queries, heads * width)
        + linear(hidden, width)
        + width
        + linear(heads * width // config.o_groups, grouped)
        + linear(grouped, hidden)
        + heads  # sinks
        + compressor
    )


def _compressing_indexer(config: Numbers, layer: int) -> int:
    heads, width = config.index_n_heads, config.index_head_dim
    compressor = _compressor(config, 2 * width, config.compress_rates["compressed_sparse_attention"]) + width
    return compressor + linear(config.q_lora_rank, heads * width) + linear(config.hidden_size, heads)


def _deepseek_v4_experts(config: Numbers, layer: int) -> int:
    """Experts in every layer; those of the first are looked up by token, beside a router all the same."""
    shared = gated_mlp(config.hidden_size, config.intermediate_size, config.mlp_bias)
    return experts(config, config.num_local_experts, config.intermediate_size) + shared


def _deepseek_v4_idle(config: Numbers, layer: int) -> int:
    return idle_experts(config, config.num_local_experts, config.intermediate_size)


def _minimax_attention(config: Numbers, layer: int) -> int:
    width = config.num_attention_heads * config.head_dim
    keys_and_values = 2 * linear(config.hidden_size, config.num_key_value_heads * config.head_dim)
    return 2 * linear(config.hidden_size, width) + keys_and_values + 2 * config.head_dim


def _block_indexer(config: Numbers, layer: int) -> int:
    heads, width = config.index_n_heads, config.index_head_dim
    return linear(config.hidden_size, heads * width) + linear(config.hidden_size, width) + 2 * width


def _minimax_feed_forward(config: Numbers, layer: int) -> int:
    if config.mlp_layer_types[layer] != "sparse":
        return gated_mlp(config.hidden_size, config.dense_intermediate_size)
    shared = gated_mlp(config.hidden_size, config.shared_intermediate_size)
    return experts(config, config.num_local_experts, config.intermediate_size) + shared


def _minimax_idle(config: Numbers, layer: int) -> int:
    if config.mlp_layer_types[layer] != "sparse":
        return 0
    return idle_experts(config, config.num_local_experts, config.intermediate_size)


def _qwen4_attention(config: Numbers, layer: int) -> int:
    hidden = config.hidden_size
    if config.layer_types[layer] != "linear_attention":
        width, bias = config.num_attention_heads * config.head_dim, config.attention_bias
        keys_and_values = 2 * linear(hidden, config.num_key_value_heads * config.head_dim, bias)
        queries_and_gates = linear(hidden, 2 * width, bias)
        return queries_and_gates + keys_and_values + linear(width, hidden, bias) + 2 * config.head_dim
    heads, value_width = config.linear_num_value_heads, config.linear_value_head_dim
    values = heads * value_width
    mixed = 2 * config.linear_num_key_heads * config.linear_key_head_dim + values
    return (
        mixed * config.linear_conv_kernel_dim
        + 2 * heads  # a bias and a rate of each
        + value_width  # the output's norm
        + linear(values, hidden)
        + linear(hidden, mixed + values + 2 * heads)
    )


def _averaging_indexer(config: Numbers, layer: int) -> int:
    heads, width = config.indexer_n_heads + config.indexer_kv_heads, config.indexer_head_dim
    return linear(config.hidden_size, heads * width) + 2 * width


def _qwen4_feed_forward(config: Numbers, layer: int) -> int:
    shared = gated_mlp(config.hidden_size, config.shared_expert_intermediate_size) + config.hidden_size
    return experts(config, config.num_experts, config.moe_intermediate_size) + shared


def _qwen4_idle(config: Numbers, layer: int) -> int:
    return idle_experts(config, config.num_experts, config.moe_intermediate_size)


def _gated_residual(config: Numbers) -> int:
    """A norm over all streams and a mix of them through a low rank."""
    streams = config.hc_count * config.hidden_size
    return streams + 2 * linear(streams, config.hc_lowrank)


def _qwen4_beside(config: Numbers, layer: int) -> int:
    """A gated residual around either part, and embeddings of n-grams in some layers."""
    injection = linear(config.hc_count * config.hidden_size, config.hc_count)
    residuals = 2 * (_gated_residual(config) + injection)
    identifiers = config.ple_layer_ids  # from 1 up
    return residuals + (_ngrams(config, identifiers.index(layer + 1)) if layer + 1 in identifiers else 0)


def _ngrams(config: Numbers, place: int) -> int:
    """The n-gram embeddings of the layer that is at ``place`` among those that have some.

    Each of its heads hashes into a table of another prime size, and the tables are padded together.
    """
    streams, width = config.hc_count * config.hidden_size, config.ple_embed_dim
    heads = (config.ngram_size - 1) * config.heads_per_ngram
    sizes = islice(_primes_from(config.ngram_vocab_size_base), place * heads, (place + 1) * heads)
    divisor = config.make_ngram_vocab_size_divisible_by
    rows = math.ceil(sum(sizes) / divisor) * divisor
    projections = linear(width, streams) + linear(width, config.hidden_size)
    norms, convolution = 3 * streams, streams * config.ple_conv_kernel_size
    return rows * (width // heads) + projections + norms + convolution


def _primes_from(least: int) -> Iterator[int]:
    for number in count(max(least, 2)):
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            yield number


_MLA = Decoder(_latent, _lightning)
_HY_V4 = Decoder(_hy_v4_attention, _lightning, beside=_two_way_connections, behind=_weighted_head)
DECODERS = {
    "deepseek_v32": _MLA,
    "glm_moe_dsa": _MLA,
    "axk2": Decoder(_axk2_attention, _lightning, beside=_axk2_norms),
    "hy_v4": _HY_V4,
    "hy_v4_vl": _HY_V4,
    "mistral_large4": Decoder(
        _mistral_attention, lambda config, layer: indexer_on_states(config), behind=_mistral_behind
    ),
    "dots3_note": Decoder(_dots_attention, _dots_indexer),
    "glm5_next": Decoder(_glm5_next_attention, _pooling_indexer, beside=_three_way_connections),
    "deepseek_v4": Decoder(
        _deepseek_v4_attention,
        _compressing_indexer,
        _deepseek_v4_experts,
        _deepseek_v4_idle,
        _three_way_connections,
        _weighted_head,
    ),
    "minimax_m3_vl": Decoder(_minimax_attention, _block_indexer, _minimax_feed_forward, _minimax_idle),
    "qwen4_exp": Decoder(
        _qwen4_attention,
        _averaging_indexer,
        _qwen4_feed_forward,
        _qwen4_idle,
        _qwen4_beside,
        _gated_residual,
    ),
}
"""The decoder of each family, by transformers' name for it."""
