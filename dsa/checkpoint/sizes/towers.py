"""Parameters of the vision towers, with their projectors, of families that are loaded whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .parts import Numbers, gated_mlp, linear


def _layer_norms(width: int, count: int) -> int:
    """With a bias each."""
    return count * 2 * width


def _vision_layer(width: int, inner_width: int) -> int:
    """Attention and two linear layers of a vision transformer, biases everywhere, LayerNorm before each."""
    attention = 4 * linear(width, width, bias=True)
    return attention + linear(width, inner_width, True) + linear(inner_width, width, True) + _layer_norms(width, 2)


def _patch(vision: Numbers, channels: int) -> int:
    """Numbers in a patch of an image, or of several that follow each other."""
    frames = getattr(vision, "temporal_patch_size", 1)
    return channels * frames * vision.patch_size**2


def _hy_v4_vl(config: Numbers) -> int:
    vision = config.vision_config
    width, out, block = vision.hidden_size, vision.out_hidden_size, vision.spatial_merge_size**2
    heads = vision.num_attention_heads * getattr(vision, "head_dim", width // vision.num_attention_heads)
    attention = 3 * linear(width, heads, True) + linear(heads, width, True)
    layer = _vision_layer(width, vision.intermediate_size) - 4 * linear(width, width, True) + attention
    positions = (vision.max_image_size // vision.patch_size) ** 2 + 1
    embedding = linear(_patch(vision, vision.num_channels), width, True) + positions * width
    merger = linear(width * block, width * block, True) + linear(width * block, out, True) + out + width
    return embedding + vision.num_hidden_layers * layer + merger


def _mistral_large4(config: Numbers) -> int:
    """Pixtral, and a projector that merges patches."""
    vision, hidden, bias = config.vision_config, config.text_config.hidden_size, config.multimodal_projector_bias
    width, features = vision.hidden_size, config.vision_feature_layer
    layer = 4 * linear(width, width) + gated_mlp(width, vision.intermediate_size) + 2 * width
    embedding = linear(_patch(vision, vision.num_channels), width) + width
    merger = width + linear(width * config.spatial_merge_size**2, width)
    concatenated = width * (1 if isinstance(features, int) else len(features))
    projector = linear(concatenated, hidden, bias) + linear(hidden, hidden, bias)
    return embedding + vision.num_hidden_layers * layer + merger + projector


def _glm5_next(config: Numbers) -> int:
    vision = config.vision_config
    width, out, bias = vision.hidden_size, vision.out_hidden_size, vision.attention_bias
    attention = linear(width, 3 * width, bias) + linear(width, width, bias) + 2 * (width // vision.num_heads)
    layer = attention + gated_mlp(width, vision.intermediate_size, bias) + 2 * width
    embedding = linear(_patch(vision, vision.in_channels), width, True)
    reduction = width + linear(width * vision.spatial_merge_size**2, out, True)
    merger = linear(out, out) + _layer_norms(out, 1) + gated_mlp(out, vision.projection_intermediate_size)
    return embedding + vision.depth * layer + reduction + merger


def _minimax_m3_vl(config: Numbers) -> int:
    vision, hidden, inner = config.vision_config, config.text_config.hidden_size, config.projector_hidden_size
    width = vision.hidden_size
    embedding = linear(_patch(vision, vision.num_channels), width) + _layer_norms(width, 1)
    projector = linear(width, inner, True) + linear(config.merged_hidden_size, inner, True)
    layers = vision.num_hidden_layers * _vision_layer(width, vision.intermediate_size)
    return embedding + layers + projector + 2 * linear(inner, hidden, True)


_TOWERS: dict[str, tuple[str, Callable[[Numbers], int]]] = {
    "hy_v4_vl": ("hy_v4_vl_vision", _hy_v4_vl),
    "mistral_large4": ("pixtral", _mistral_large4),
    "glm5_next": ("glm5_next_vision", _glm5_next),
    "minimax_m3_vl": ("minimax_m3_vl_vision", _minimax_m3_vl),
}
"""For each family, the tower that is counted, by the model_type of its config's class, and its parameters."""


def tower_parameters(config: Any, family: str) -> int | None:
    """Parameters of the vision tower and projector of a checkpoint of ``family``; None where it has other ones."""
    kind, parameters = _TOWERS.get(family, (None, None))
    vision = config.vision_config
    if parameters is None or type(vision).model_type != kind or not _has_whole_heads(vision):
        return None
    return parameters(config)


def _has_whole_heads(vision: Any) -> bool:
    """Whether its width divides into heads, and these into rows and columns of pairs that are rotated."""
    if not all(
        isinstance(size, int) for size in (vision.hidden_size, vision.num_attention_heads, vision.patch_size)
    ):
        return False
    return bool(vision.hidden_size % (4 * vision.num_attention_heads) == 0)
