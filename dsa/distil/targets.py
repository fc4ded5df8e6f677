"""What an indexer is to predict: a layer's head-averaged attention over all earlier keys, for some queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..chunks import ChunkBudget
from ..long.attention import logit_factors

# Heads whose softmax is made at a time.
_HEADS = 4


class AttentionCall(NamedTuple):
    """How a layer called the function that attends.

    Args:
        module: the attention layer.
        query: ``[1, heads, tokens, dim]``.
        key: ``[1, heads, tokens, dim]``; or, where sparse attention runs, latent keys ``[1, 1, tokens, dim]``.
        scaling: of the logits.
        sinks: ``[heads]`` logits of a key without value; None in most families.
    """

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    sinks: torch.Tensor | None


@contextmanager
def watched_attention(attention: nn.Module) -> Iterator[list[AttentionCall]]:
    """Within it, every call that ``attention`` makes of the function that attends, whichever is installed."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions: Any = ALL_ATTENTION_FUNCTIONS
    calls: list[AttentionCall] = []
    stock = functions.get_interface

    def get_interface(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        attend = stock(*args, **kwargs)

        def watching(module: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> Any:
            if module is attention:
                calls.append(AttentionCall(module, query, key, options["scaling"], options.get("s_aux")))
            return attend(module, query, key, *rest, **options)

        return watching

    # On the instance, which all models share: other modules' calls go through as they are.
    functions.get_interface = get_interface
    try:
        yield calls
    finally:
        del functions.get_interface


def mean_attention(call: AttentionCall, rows: torch.Tensor, budget: ChunkBudget) -> torch.Tensor:
    """``p_t = sum_h a_ht / sum_hu a_hu`` with the softmax ``a_h`` of each head over all keys up to the query.

    The selection has no part in it. Where heads have sinks, what goes to these is left out of ``p``. No
    ``[heads, tokens, tokens]`` tensor is made: a chunk of queries and a few heads at a time.

    Args:
        call: of the layer.
        rows: ascending places of the queries, ``[rows]``, on the CPU.
        budget: memory for a chunk.

    Returns:
        ``[rows, tokens]`` fp32; every row sums to 1 and is 0 behind its query.
    """
    queries, keys = logit_factors(call.module, call.query[:, :, rows.to(call.query.device)], call.key)
    heads, device = queries.shape[1], queries.device
    target = torch.zeros(len(rows), keys.shape[2], device=device)
    sinks = None if call.sinks is None else call.sinks.float()[:, None, None]

    def work(start: int, end: int) -> None:
        places = rows[start:end]
        seen = int(places[-1]) + 1
        hidden = torch.arange(seen, device=device)[None] > places.to(device)[:, None]
        total = torch.zeros(end - start, seen, device=device)
        for first in range(0, heads, _HEADS):
            some = slice(first, first + _HEADS)
            shared = keys[0, :, :seen] if keys.shape[1] == 1 else keys[0, some, :seen]
            logits = queries[0, some, start:end].float() @ shared.float().mT
            logits = logits.mul_(call.scaling).masked_fill_(hidden, -torch.inf)
            if sinks is not None:
                logits = torch.cat((logits, sinks[some].expand(-1, end - start, 1)), dim=-1)
            total += logits.softmax(-1).sum(0)[:, :seen]
        target[start:end, :seen] = total / total.sum(-1, keepdim=True)

    # Of one query: fp32 logits, their softmax and a copy with sinks, of a few heads; and the sum.
    budget.run(len(rows), 4 * keys.shape[2] * (3 * min(heads, _HEADS) + 3), device, work)
    return target
