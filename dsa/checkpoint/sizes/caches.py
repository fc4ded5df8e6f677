"""What a token leaves in caches, and what a decode step reads, by a config's numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..config import Checkpoint
from .count import layer_sizes
from .parts import Numbers


def _lightning(config: Numbers, layer: int) -> float:
    return config.index_head_dim


def _of_layer(config: Numbers, layer: int) -> float:
    return config.per_layer_config[layer].index_head_dim


def _compressed(config: Numbers, layer: int) -> float:
    """One key for as many tokens as are compressed together."""
    return config.index_head_dim / config.compress_rates["compressed_sparse_attention"]


def _averaged_later(config: Numbers, layer: int) -> float:
    """Keys of single tokens, which are averaged as they are read."""
    return config.indexer_kv_heads * config.indexer_head_dim


# Of a token at a site, in numbers. GLM-5.3-Flash is left out: what its indexers keep of pools differs by program.
_INDEX_KEYS: dict[str, Callable[[Numbers, int], float]] = {
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4", "hy_v4_vl", "mistral_large4"), _lightning),
    "dots3_note": _of_layer,
    "deepseek_v4": _compressed,
    "minimax_m3_vl": _lightning,
    "qwen4_exp": _averaged_later,
}
# Families all of whose layers keep one latent key and its rotary part for each token.
_LATENT = ("deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4", "hy_v4_vl")


def index_key_values(checkpoint: Checkpoint) -> tuple[float, ...] | None:
    """Numbers that a token adds to the index keys of each site that runs its indexer; None where not known."""
    values = _INDEX_KEYS.get("" if checkpoint.family is None else checkpoint.family.model_type)
    if values is None:
        return None
    try:
        return tuple(float(values(checkpoint.text, layer)) for layer in checkpoint.site_layers)
    except (AttributeError, TypeError, LookupError):
        return None


@dataclass(frozen=True)
class StepReads:
    """Bytes that one decode step reads at least, each once.

    Args:
        weights: of all layers that run, experts that no sequence is sent to left out, and of the head.
        keys: latent keys that attention reads.
        index_keys: that full sites score.
    """

    weights: int
    keys: int
    index_keys: int

    @property
    def all(self) -> int:
        """Together."""
        return self.weights + self.keys + self.index_keys


def step_reads(
    checkpoint: Checkpoint, context: int, batch: int, full_layers: Collection[int], size: int, is_sparse: bool
) -> StepReads | None:
    """What a step of ``batch`` sequences reads behind ``context`` tokens each; None where that is not known.

    Experts are taken to be chosen evenly: of E experts, k for each token, a batch of B reaches
    ``E (1 - (1 - k/E)^B)``.

    Args:
        checkpoint: of the model.
        context: tokens in the cache.
        batch: sequences.
        full_layers: layers that run their indexer.
        size: bytes of a number.
        is_sparse: whether attention reads the selected keys only, and not all.
    """
    text, layers, values = checkpoint.text, layer_sizes(checkpoint), index_key_values(checkpoint)
    kind = "" if checkpoint.family is None else checkpoint.family.model_type
    if layers is None or values is None or kind not in _LATENT:
        return None
    share = text.num_experts_per_tok / text.num_local_experts
    weights = text.vocab_size * text.hidden_size
    for number, layer in enumerate(layers):
        routed = layer.idle / (1 - share) if layer.idle else 0.0
        reached = routed * (1 - (1 - share) ** batch)
        weights += layer.attention + layer.feed_forward - routed + reached
        weights += layer.indexer if number in full_layers else 0
    read = min(context, checkpoint.selection_width) if is_sparse else context
    keys = batch * read * len(layers) * (text.kv_lora_rank + text.qk_rope_head_dim)
    sites = zip(checkpoint.site_layers, values, strict=True)
    index_keys = batch * context * sum(value for layer, value in sites if layer in full_layers)
    return StepReads(*(round(size * numbers) for numbers in (weights, keys, index_keys)))
