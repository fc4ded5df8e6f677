"""What a saved checkpoint is worth on held-out windows and probes, and whether our forward equals stock."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from indexcache.calibrate.probes import Probe
from indexcache.recipes.tiny import forward

PROBES_AT_A_TIME = 8


def load(folder: Path, device: torch.device, **changes: Any) -> Any:
    """A saved checkpoint in fp32, by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes).eval().to(device)


@torch.no_grad()
def stock_losses(model: Any, windows: Tensor) -> Tensor:
    """Mean loss of each window [W] of windows [W, S + 1], by the stock forward."""
    logits = (model(window[None, :-1], use_cache=False).logits[0] for window in windows)
    return torch.stack([F.cross_entropy(*pair) for pair in zip(logits, windows[:, 1:], strict=True)])


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]  # one window would be compiled anew
def tie_shares(model: Any, windows: Tensor) -> Tensor:
    """Share of rows with more than k keys whose k-th and next score are equal; and equal to zero: [L, 2]."""
    width, window = model.config.index_topk, windows.shape[1] - 1
    causal = forward.causal_mask(window, windows.device)[:, width:]
    rows = torch.arange(width, window, device=windows.device)
    shares: list[Tensor] = []

    def count(view: forward.LayerView) -> None:
        scores = forward.index_scores(view.module.indexer, view.hidden, view.latent, view.rotary, rows)
        best = scores.masked_fill(~causal, -torch.inf).topk(width + 1).values
        tied = best[..., -2] == best[..., -1]
        shares.append(torch.stack([tied, tied & (best[..., -1] == 0)]).float().mean((1, 2)))

    for tokens in windows:
        forward.run_layers(model, tokens[None, :-1], sparse=True, watch=count)
    return torch.stack(shares).view(len(windows), -1, 2).mean(0)


@torch.no_grad()
def probe_figures(model: Any, probes: Sequence[Probe], device: torch.device) -> dict[str, dict[str, float]]:
    """By kind: share of answer tokens that are the likeliest, of probes with all such, and loss in nats."""
    kinds: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for first in range(0, len(probes), PROBES_AT_A_TIME):
        batch = probes[first : first + PROBES_AT_A_TIME]
        tokens = torch.tensor([probe.token_ids for probe in batch], device=device)
        logits = model(tokens, use_cache=False).logits
        for probe, row, ids in zip(batch, logits, tokens, strict=True):
            answers = torch.tensor(probe.answers, device=device)
            right = (row[answers].argmax(-1) == ids[answers + 1]).float()
            loss = F.cross_entropy(row[answers], ids[answers + 1]).item()
            kinds[probe.kind].append((right.mean().item(), right.min().item(), loss))
    names = ("accuracy", "all_right", "loss")
    means = {kind: torch.tensor(figures).mean(0).tolist() for kind, figures in kinds.items()}
    return {kind: dict(zip(names, mean, strict=True)) for kind, mean in sorted(means.items())}


def measure(folder: Path, windows: Tensor, probes: Sequence[Probe] = ()) -> dict[str, Any]:
    """Losses, ties and probes of a saved checkpoint on windows [W, S + 1]; dense has room for all keys."""
    window, device = windows.shape[1] - 1, windows.device
    sparse_model, dense_model = load(folder, device), load(folder, device, index_topk=window)
    sparse, dense = stock_losses(sparse_model, windows), stock_losses(dense_model, windows)
    gap, ties = sparse - dense, tie_shares(sparse_model, windows)
    figures: dict[str, Any] = {
        "windows": len(windows),
        "window": window,
        "dense_loss": dense.mean().item(),
        "sparse_loss": sparse.mean().item(),
        "gap": gap.mean().item(),
        "gap_standard_error": gap.std().item() / len(gap) ** 0.5,
        "tie_share": ties[:, 0].mean().item(),
        "tie_share_at_zero": ties[:, 1].mean().item(),
        "tie_share_by_layer": [round(share, 5) for share in ties[:, 0].tolist()],
    }
    print(f"held out, {window} tokens:", *(f"\n  {name} {figure}" for name, figure in figures.items()), flush=True)
    if probes:
        models = {"dense": dense_model, "sparse": sparse_model}
        figures["probes"] = {name: probe_figures(model, probes, device) for name, model in models.items()}
        for name, kinds in figures["probes"].items():
            print(f"  probes, {name}: share of tokens, and of whole answers, that are right", flush=True)
            for kind, values in kinds.items():
                print(f"    {kind:9} {values['accuracy']:.3f} {values['all_right']:.3f}", flush=True)
    return figures


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]  # near-ties fall as in stock
def check_against_stock(model: Any, window: int, seed: int) -> dict[str, Any]:
    """Whether this script and transformers agree on a random window's logits and selections, and how nearly.

    Selections are compared on the stock layer's own inputs; only a row with a near-tie may differ. Such a row
    changes all later layers, so that with one the median row is compared and not the worst.
    """
    calls: list[tuple[Any, Any, Tensor]] = []
    indexers = [layer.self_attn.indexer for layer in model.model.layers]
    hooks = [module.register_forward_hook(lambda *call: calls.append(call)) for module in indexers]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, model.config.vocab_size, (1, window), generator=generator).to(model.device)
    stock = model.eval()(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    logits = model.lm_head(forward.run_layers(model, tokens, sparse=True))
    losses = [F.cross_entropy(rows[0, :-1], tokens[0, 1:]) for rows in (stock, logits)]
    differences = (stock - logits).abs().amax(-1)[0]
    near_tied, others = torch.tensor([differing_rows(*call) for call in calls]).sum(0).tolist()
    figures: dict[str, Any] = {
        "logits": differences.max().item(),
        "logits_of_median_row": differences.median().item(),
        "loss": (losses[0] - losses[1]).abs().item(),
        "near_tied_rows": near_tied,
        "other_rows": others,
    }
    nearly = figures["logits"] < 1e-4 or (figures["logits_of_median_row"] < 1e-3 and figures["loss"] < 1e-2)
    figures["agrees"] = nearly and not others and len(calls) == len(indexers)
    print("check against stock: differences " + json.dumps(figures), flush=True)
    return figures


def differing_rows(indexer: Any, given: Any, stock_best: Tensor) -> tuple[int, int]:
    """Rows that this script and stock select otherwise: with a near-tie at the k-th place, and all others."""
    hidden, latent, rotary, *_ = given
    causal = forward.causal_mask(hidden.shape[1], hidden.device)
    rows = torch.arange(hidden.shape[1], device=hidden.device)
    scores = forward.index_scores(indexer, hidden, latent, rotary, rows)
    stock = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, stock_best.long(), True) & causal
    differ = (forward.select(scores, causal, indexer.index_topk) != stock).any(-1)
    best = scores.masked_fill(~causal, -torch.inf).topk(indexer.index_topk + 1).values
    near = best[..., -2] - best[..., -1] <= 1e-4 * best[..., 0].abs()
    return int((differ & near).sum()), int((differ & ~near).sum())
