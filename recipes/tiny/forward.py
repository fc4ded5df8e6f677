"""The embedded model's forward with gradients for its indexers: dense, sparse, and what indexers learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import apply_rotary_pos_emb_interleave

Rotary = tuple[Tensor, Tensor]  # cosines and sines [1, S, D]


@dataclass(frozen=True)
class LayerView:
    """What an indexer sees of its layer and learns from; nothing in it carries gradients."""

    module: Any  # the layer's attention
    hidden: Tensor  # its normed input [B, S, C]
    latent: Tensor  # its query latent [B, S, R]
    rotary: Rotary
    allowed: Tensor  # what may be attended to [B, S, T]
    query: Tensor  # [B, H, S, D]
    key: Tensor  # [B, H, T, D]


Watch = Callable[[LayerView], None]


def turn(states: Tensor, rotary: Rotary, heads_dimension: int) -> Tensor:
    """Interleaved rotary embedding of states whose heads stand in ``heads_dimension``, as GLM's class does it."""
    turned: Tensor = apply_rotary_pos_emb_interleave(states, states, *rotary, unsqueeze_dim=heads_dimension)[0]
    return turned


def attention_states(layer: Any, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
    """Normed input [B, S, C], query latent [B, S, R], query, key and value [B, H, S, D] of one layer."""
    normed, module = layer.input_layernorm(hidden), layer.self_attn
    batch, window, _ = normed.shape
    latent = module.q_a_layernorm(module.q_a_proj(normed))
    query = module.q_b_proj(latent).view(batch, window, -1, module.qk_head_dim).transpose(1, 2)
    query, query_turned = query.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    sizes = [module.kv_lora_rank, module.qk_rope_head_dim]
    key_value, key_turned = module.kv_a_proj_with_mqa(normed).split(sizes, dim=-1)
    query = torch.cat([query, turn(query_turned, rotary, 1).to(query.dtype)], dim=-1)
    key_value = module.kv_b_proj(module.kv_a_layernorm(key_value))
    key_value = key_value.view(batch, window, -1, module.qk_nope_head_dim + module.v_head_dim).transpose(1, 2)
    key, value = key_value.split([module.qk_nope_head_dim, module.v_head_dim], dim=-1)
    key_turned = turn(key_turned[:, None], rotary, 1).expand(-1, key.shape[1], -1, -1)
    return normed, latent, query, torch.cat([key, key_turned.to(key.dtype)], dim=-1), value


def after_attention(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What a layer hands on [B * S, C], from its input and its attention's output [B * S, H * D]."""
    hidden = hidden + layer.self_attn.o_proj(mixed)
    handed_on: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return handed_on


def index_scores(module: Any, hidden: Tensor, latent: Tensor, rotary: Rotary, rows: Tensor) -> Tensor:
    """What `GlmMoeDsaIndexer.forward` ranks for the queries ``rows`` [R], in fp32, with gradients: [B, R, T].

    Future keys are included.
    """
    batch = hidden.shape[0]
    parts = [module.qk_rope_head_dim, module.head_dim - module.qk_rope_head_dim]
    query = module.wq_b(latent[:, rows]).view(batch, len(rows), -1, module.head_dim)
    query, query_plain = query.split(parts, dim=-1)
    key, key_plain = module.k_norm(module.wk(hidden)).split(parts, dim=-1)
    query = turn(query, (rotary[0][:, rows], rotary[1][:, rows]), 2)
    query = torch.cat([query, query_plain], dim=-1).float() * module.softmax_scale
    key = torch.cat([turn(key[:, :, None], rotary, 2)[:, :, 0], key_plain], dim=-1).float()
    weights = module.weights_proj(hidden[:, rows]).float() * module.n_heads**-0.5
    # In fp32, as stock: bf16 has too few digits to tell the k-th score from the next.
    with torch.autocast(hidden.device.type, enabled=False):
        products = (query.flatten(1, 2) @ key.transpose(1, 2)).view(batch, len(rows), module.n_heads, -1)
        scores: Tensor = (weights[..., None] * F.relu(products)).sum(2)
    return scores


def causal_mask(window: int, device: torch.device) -> Tensor:
    """True where a query may look: [1, S, T]."""
    return torch.ones(1, window, window, dtype=torch.bool, device=device).tril()


def select(scores: Tensor, causal: Tensor, width: int) -> Tensor:
    """True at the ``width`` best keys of every query: [B, S, T]."""
    best = scores.masked_fill(~causal, -math.inf).topk(min(width, scores.shape[-1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) & causal


@torch.no_grad()
def selection(indexer: Any, hidden: Tensor, latent: Tensor, rotary: Rotary, causal: Tensor) -> Tensor:
    """What an indexer lets every query attend to: [B, S, T]."""
    every_row = torch.arange(hidden.shape[1], device=hidden.device)
    return select(index_scores(indexer, hidden, latent, rotary, every_row), causal, indexer.index_topk)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """Attention's output [B, H, S, D]; without ``allowed`` [B, S, T], every earlier key is attended to."""
    # Flash attention takes values only as wide as keys, so they get zeros behind them.
    wide = F.pad(value, (0, key.shape[-1] - value.shape[-1]))
    mask = None if allowed is None else allowed[:, None]
    mixed = F.scaled_dot_product_attention(query, key, wide, mask, is_causal=mask is None, scale=scale)
    return mixed[..., : value.shape[-1]]


def rotary_of(model: Any, tokens: Tensor) -> Rotary:
    """Cosines and sines [1, S, D] in fp32."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    cosines, sines = model.model.rotary_emb(model.model.embed_tokens.weight, positions)
    return cosines, sines


def run_layers(model: Any, tokens: Tensor, sparse: bool, watch: Watch | None = None) -> Tensor:
    """Final hidden states [B, S, C] of tokens [B, S]; ``watch`` sees every layer, first to last.

    Indexers get detached inputs and only hand on a selection: LM loss and KL never share a parameter.
    """
    hidden, rotary = model.model.embed_tokens(tokens), rotary_of(model, tokens)
    causal = causal_mask(tokens.shape[1], tokens.device)
    for layer in model.model.layers:
        module = layer.self_attn
        normed, latent, query, key, value = attention_states(layer, hidden, rotary)
        allowed, seen = None, (normed.detach(), latent.detach())
        if sparse:
            allowed = selection(module.indexer, *seen, rotary, causal)
        if watch:
            open_keys = causal.expand(len(tokens), -1, -1) if allowed is None else allowed
            watch(LayerView(module, *seen, rotary, open_keys, query.detach(), key.detach()))
        mixed = attend(query, key, value, allowed, module.scaling).transpose(1, 2).flatten(2)
        # Rows in one dimension: what is compiled for them serves windows of all lengths.
        hidden = after_attention(layer, hidden.flatten(0, 1), mixed.flatten(0, 1)).view_as(hidden)
    return model.model.norm(hidden)  # type: ignore[no-any-return]


def token_losses(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of targets [N] in nats, from final hidden states [N, C]."""
    return F.cross_entropy(model.lm_head(hidden).float(), targets, reduction="none")


@torch.no_grad()
def attention_target(query: Tensor, key: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Attention probabilities over the allowed keys, averaged over heads: [B, R, T]."""
    total = torch.zeros(query.shape[0], query.shape[2], key.shape[2], device=query.device)
    for head in range(query.shape[1]):  # one head at a time: fp32 logits of all would fill the memory
        logits = query[:, head].float() @ key[:, head].float().transpose(1, 2) * scale
        total += logits.masked_fill(~allowed, -math.inf).softmax(-1)
    return total / query.shape[1]


def index_divergence(scores: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """KL(target || softmax of scores over the allowed keys), mean over rows: a scalar."""
    logs = scores.masked_fill(~allowed, -math.inf).log_softmax(-1).masked_fill(~allowed, 0)
    return (torch.xlogy(target, target) - target * logs).sum(-1).mean()


def compile_parts() -> None:
    """Compiles the hot functions; one that the compiler fails on runs as it stands."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64  # a graph for every length, with and without gradients
    for name in (
        "attention_states",
        "after_attention",
        "index_scores",
        "token_losses",
        "attention_target",
        "index_divergence",
    ):
        globals()[name] = torch.compile(globals()[name], dynamic=False)
