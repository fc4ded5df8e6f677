"""PyTorch in the place of those vLLM kernels that a CPU has none of, and a note of which indexers ran."""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.models.deepseek_v2 as deepseek
from vllm.model_executor.layers import mla
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

RAN: list[str] = []
"""Prefixes of the indexers that chose tokens, in their order."""


class _Selections:
    """What the attention backend would do with selections: nothing here."""

    def record_logical_topk_ready(self) -> None:
        """Nobody waits."""


class Attention(torch.nn.Module):
    """Multi-head latent attention over the selected tokens of one window."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings, self.layer_name, self.impl = settings, settings["prefix"], _Selections()
        self.up = [settings["kv_b_proj"]]  # in a list: it is another module's part

    def forward(
        self, q: torch.Tensor, kv_c: torch.Tensor, k_pe: torch.Tensor, output_shape: Any = None, **_: Any
    ) -> torch.Tensor:
        """``q`` [rows, heads, width], ``kv_c`` [rows, rank], ``k_pe`` [rows, 1, rope]; [rows, heads x values]."""
        settings, rows, heads = self.settings, q.shape[0], self.settings["num_heads"]
        plain, values = settings["qk_nope_head_dim"], settings["v_head_dim"]
        up = self.up[0](kv_c)[0].view(rows, heads, plain + values)
        key = torch.cat([up[..., :plain], k_pe.expand(rows, heads, -1)], -1)
        scores = torch.einsum("qhd,khd->hqk", q, key) * settings["scale"]
        chosen = settings["topk_indices_buffer"][:rows].long()
        # Places that were not filled hold -1, which is one column too many.
        allowed = torch.zeros(rows, rows + 1, dtype=torch.bool)
        allowed.scatter_(1, torch.where(chosen < 0, rows, chosen), True)
        weights = scores.masked_fill(~allowed[:, :rows], float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, up[..., plain:]).reshape(output_shape)


class Indexer(torch.nn.Module):
    """The choice of tokens: weighted sums of what is positive, and the largest of them."""

    def __init__(self, cache: Any, *settings: Any, **_: Any) -> None:
        super().__init__()
        # Block, scale's form, tokens to choose, width, longest window, cache's length, where to put the places.
        self.prefix, self.topk, self.buffer = cache.prefix, settings[2], settings[6]

    def forward(
        self, hidden: torch.Tensor, q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """``q`` [rows, heads, width], ``k`` [rows, width], ``weights`` [rows, heads]; the buffer of places."""
        RAN.append(self.prefix)
        rows = q.shape[0]
        scores = (torch.einsum("qhd,kd->qhk", q, k).relu() * weights.view(rows, -1, 1)).sum(1)
        scores = scores.masked_fill(torch.ones(rows, rows, dtype=torch.bool).triu(1), float("-inf"))
        best, places = scores.topk(min(self.topk, rows), -1)
        self.buffer[:rows].fill_(-1)
        self.buffer[:rows, : places.shape[1]] = torch.where(best == float("-inf"), -1, places).int()
        return self.buffer


def replace() -> None:
    """Puts them in place; vLLM's own rotary embedding in PyTorch stands in for that of its CPU kernel."""
    mla.MLAAttention = Attention
    deepseek.SparseAttnIndexer = Indexer
    deepseek.per_token_group_quant_fp8 = lambda q, *_, **__: (q, torch.ones(q.shape[0], 1))
    RotaryEmbedding.forward_cpu = RotaryEmbedding.forward_native
