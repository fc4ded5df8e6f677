"""Trains the embedded tiny DSA model from scratch on one GPU: dense, indexer warm-up, sparse."""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import apply_rotary_pos_emb_interleave

DOCUMENT_END = "<|endoftext|>"
VOCABULARY = 4096
SPARSE_ALLOWANCE = 0.03  # nats per token by which the sparse loss may exceed the dense one
SMOKE_CHARACTERS = 2_000_000
SMOKE_OPTIONS = "--batch 2 --window 128 --dense-steps 80 --index-steps 25 --sparse-steps 25 --held-out 8"


@dataclass(frozen=True)
class Stage:
    """What one stage runs and learns; `peak_rate` is the highest learning rate."""

    name: str
    peak_rate: float
    sparse: bool
    learns_text: bool
    learns_index: bool


STAGES = (
    Stage("dense", 2e-3, sparse=False, learns_text=True, learns_index=False),
    Stage("index", 2e-3, sparse=False, learns_text=False, learns_index=True),
    Stage("sparse", 5e-4, sparse=True, learns_text=True, learns_index=True),
)


# Takes index scores and what may be attended to [B, S, T], then scaled queries and keys [B, H, S or T, D].
Watch = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def read_documents(path: Path, limit: int = -1) -> list[str]:
    """Documents of a .jsonl file, or of a .txt.xz file (its first ``limit`` characters), parted by U+001E."""
    if path.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read(limit).split("\n\x1e\n")  # decompresses no more than it returns


def train_tokenizer(documents: list[str]) -> FastTokenizer:
    """A byte-level BPE of 4096 entries; <|endoftext|> is id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[DOCUMENT_END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), DOCUMENT_END)
    return FastTokenizer(tokenizer_object=tokenizer, **ends)


def encode(tokenizer: Any, documents: list[str]) -> Tensor:
    """All documents as one stream of ids [N], each after an <|endoftext|>."""
    end = tokenizer.eos_token_id
    pieces = []
    for first in range(0, len(documents), 32):  # an encoding takes many times the memory of its ids
        encodings = tokenizer.backend_tokenizer.encode_batch(documents[first : first + 32])
        pieces += [torch.tensor([end, *encoding.ids], dtype=torch.int32) for encoding in encodings]
    return torch.cat(pieces)


def shuffled_starts(tokens: int, window: int, needed: int, seed: int) -> Tensor:
    """Where the training windows begin [needed]; each pass over the text shifts and shuffles them anew."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.empty(0, dtype=torch.long)
    while len(starts) < needed:
        shift = int(torch.randint(window, (), generator=generator))
        grid = torch.arange(shift, tokens - window, window)
        starts = torch.cat([starts, grid[torch.randperm(len(grid), generator=generator)]])
    return starts[:needed]


def windows_at(tokens: Tensor, starts: Tensor, window: int) -> Tensor:
    """The windows [len(starts), window + 1] of a stream; the last token is only ever a target."""
    return tokens[starts.to(tokens.device)[:, None] + torch.arange(window + 1, device=tokens.device)].long()


def even_windows(tokens: Tensor, window: int, count: int) -> Tensor:
    """``count`` windows, or as many as there are, spread evenly over a stream [count, window + 1]."""
    available = (len(tokens) - 1) // window
    chosen = torch.linspace(0, available - 1, min(count, available)).long()
    return windows_at(tokens, chosen * window, window)


def new_model(options: argparse.Namespace) -> Any:
    """An untrained model in fp32; all its layers have a dense MLP and an indexer of their own."""
    layers, hidden = options.layers, options.hidden
    config = GlmMoeDsaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        first_k_dense_replace=layers, n_routed_experts=4, num_experts_per_tok=1,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=hidden // 2, kv_lora_rank=3 * hidden // 8,
        qk_nope_head_dim=hidden // 4, qk_rope_head_dim=16, v_head_dim=hidden // 4,
        index_n_heads=options.index_heads, index_head_dim=32, index_topk=options.index_topk,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return GlmMoeDsaForCausalLM(config)


def load(folder: Path, device: torch.device, **changes: Any) -> Any:
    """A saved checkpoint in fp32, by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes).eval().to(device)


def attention_states(module: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Query and key [B, H, S, 48], value [B, H, S, 32] and the query latent [B, S, 64] of one layer."""
    batch, window, _ = hidden.shape
    latent = module.q_a_layernorm(module.q_a_proj(hidden))
    query = module.q_b_proj(latent).view(batch, window, -1, module.qk_head_dim).transpose(1, 2)
    query, query_turned = query.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    sizes = [module.kv_lora_rank, module.qk_rope_head_dim]
    key_value, key_turned = module.kv_a_proj_with_mqa(hidden).split(sizes, dim=-1)
    query_turned, key_turned = apply_rotary_pos_emb_interleave(query_turned, key_turned[:, None], *rotary)
    key, value = module.expand_kv(module.kv_a_layernorm(key_value)[:, None], key_turned)
    return torch.cat([query, query_turned], dim=-1), key, value, latent


def index_scores(module: Any, hidden: Tensor, latent: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """What `GlmMoeDsaIndexer.forward` ranks, in fp32 and with gradients: [B, S, T], future keys included."""
    batch, window, _ = hidden.shape
    # I_st = sum_h w_sh relu(q_sh . k_t); the scales, dim^-1/2 and heads^-1/2, go into q and w.
    parts = [module.qk_rope_head_dim, module.head_dim - module.qk_rope_head_dim]
    query, query_plain = module.wq_b(latent).view(batch, window, -1, module.head_dim).split(parts, dim=-1)
    key, key_plain = module.k_norm(module.wk(hidden))[:, :, None].split(parts, dim=-1)
    query, key = apply_rotary_pos_emb_interleave(query, key, *rotary, unsqueeze_dim=2)
    query = torch.cat([query, query_plain], dim=-1).float() * module.softmax_scale
    key = torch.cat([key, key_plain], dim=-1).float().squeeze(2)
    weights = module.weights_proj(hidden).float() * module.n_heads**-0.5
    # In fp32, as stock: bf16 has too few digits to tell the k-th score from the next.
    with torch.autocast(hidden.device.type, enabled=False):
        products = F.relu_(query.flatten(1, 2) @ key.transpose(1, 2))
        products = products.view(batch, window, module.n_heads, -1)
        scores: Tensor = weights[:, :, None] @ products
        return scores.squeeze(2)


def causal_mask(window: int, device: torch.device) -> Tensor:
    """True where a query may look: [1, S, T]."""
    return torch.ones(1, window, window, dtype=torch.bool, device=device).tril()


def select(scores: Tensor, causal: Tensor, width: int) -> Tensor:
    """True at the ``width`` best keys of every query: [B, S, T]."""
    best = scores.masked_fill(~causal, -math.inf).topk(min(width, scores.shape[-1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) & causal


def run_layers(model: Any, tokens: Tensor, sparse: bool, watch: Watch | None = None) -> Tensor:
    """Final hidden states [B, S, C] of tokens [B, S]; ``watch`` sees every layer's indexer, first to last.

    Indexers get detached inputs and only hand on a selection: LM loss and KL never share a parameter.
    """
    stack = model.model
    hidden = stack.embed_tokens(tokens)
    rotary = stack.rotary_emb(hidden, torch.arange(tokens.shape[1], device=tokens.device)[None])
    causal = causal_mask(tokens.shape[1], tokens.device)
    for layer in stack.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value, latent = attention_states(attention, normed, rotary)
        allowed = causal
        if sparse or watch:
            scores = index_scores(attention.indexer, normed.detach(), latent.detach(), rotary)
            if sparse:
                allowed = select(scores.detach(), causal, attention.indexer.index_topk)
            if watch:
                watch(scores, allowed, query.detach() * attention.scaling, key.detach())
        mask = allowed[:, None] if sparse else None
        mixed = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=not sparse, scale=attention.scaling
        )
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return stack.norm(hidden)  # type: ignore[no-any-return]


def text_loss(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of targets [B, S], from final hidden states [B, S, C]."""
    return F.cross_entropy(model.lm_head(hidden).float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def attention_target(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Attention probabilities over the allowed keys, averaged over heads: [B, S, T]; query is scaled."""
    total = torch.zeros(query.shape[0], query.shape[2], key.shape[2], device=query.device)
    for head in range(query.shape[1]):  # one head at a time: fp32 logits of all would fill the memory
        logits = query[:, head].float() @ key[:, head].float().transpose(1, 2)
        total += logits.masked_fill(~allowed, -math.inf).softmax(-1)
    return total / query.shape[1]


def index_divergence(scores: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """KL(target || softmax of scores over the allowed keys), mean over rows: a scalar."""
    # sum_t p_t (log p_t - log q_t); xlogy makes it 0 where the target p_t is 0.
    logs = scores.masked_fill(~allowed, -math.inf).log_softmax(-1).masked_fill(~allowed, 0)
    return (torch.xlogy(target, target) - target * logs).sum(-1).mean()


def accumulate(model: Any, windows: Tensor, stage: Stage, share: float) -> Tensor:
    """Adds ``share`` of the gradients of windows [B, S + 1]; returns LM loss and KL [2], times ``share``.

    A layer's KL touches its own indexer alone and goes backward at once: memory holds one layer's scores.
    """
    device = windows.device
    figures = torch.zeros(2, device=device)

    def learn_index(scores: Tensor, allowed: Tensor, query: Tensor, key: Tensor) -> None:
        with torch.autocast(device.type, enabled=False):
            divergence = index_divergence(scores, attention_target(query, key, allowed), allowed)
            divergence = divergence * share / len(model.model.layers)
            torch.autograd.backward(divergence)
        figures[1] += divergence.detach()

    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        watch = learn_index if stage.learns_index else None
        hidden = run_layers(model, windows[:, :-1], stage.sparse, watch)
        loss = text_loss(model, hidden, windows[:, 1:]) * share if stage.learns_text else None
    if loss is not None:
        torch.autograd.backward(loss)
        figures[0] = loss.detach()
    return figures


def rate_share(step: int, steps: int) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, min(200, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def train_stage(model: Any, stage: Stage, steps: int, tokens: Tensor, options: Any) -> dict[str, Any]:
    """Runs one stage and returns its figures; the batches depend on the seed and the stage alone."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.learns_index if ".indexer." in name else stage.learns_text)
    # Two losses on disjoint parameters: each is clipped apart, so that neither shrinks the other.
    indexers = [weight for name, weight in model.named_parameters() if ".indexer." in name]
    others = [weight for name, weight in model.named_parameters() if ".indexer." not in name]
    optimizer = torch.optim.AdamW([*indexers, *others], lr=stage.peak_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_share, steps=steps))
    batch, micro = options.batch, options.micro_batch or options.batch
    needed, seed = steps * batch, options.seed + STAGES.index(stage)
    starts = shuffled_starts(len(tokens), options.window, needed, seed).view(steps, batch)
    every, began = max(1, min(50, steps // 5)), time.perf_counter()
    recent: list[Tensor] = []
    curve: list[dict[str, float]] = []
    model.train()
    torch.set_float32_matmul_precision("high")
    for step in range(steps):
        figures = torch.zeros(2, device=tokens.device)
        for first in range(0, batch, micro):
            part = starts[step, first : first + micro]
            windows = windows_at(tokens, part, options.window)
            figures += accumulate(model, windows, stage, len(part) / batch)
        for weights in (indexers, others):
            nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(figures)
        if len(recent) == every or step + 1 == steps:
            loss, divergence = torch.stack(recent).mean(0).tolist()  # waits for the device
            seconds, tokens_seen = time.perf_counter() - began, (step + 1) * batch * options.window
            curve.append({"step": step + 1, "loss": loss, "kl": divergence, "seconds": seconds})
            place, speed = f"{stage.name:6} {step + 1:5}/{steps}", f"{tokens_seen / seconds:,.0f} tokens/s"
            print(f"{place}  loss {loss:.4f}  kl {divergence:.4f}  {speed}", flush=True)
            recent.clear()
    torch.set_float32_matmul_precision("highest")
    return {"steps": steps, "tokens": tokens_seen, "seconds": seconds, "curve": curve}


@torch.no_grad()
def stock_losses(model: Any, windows: Tensor) -> Tensor:
    """Mean loss of each window [W] of windows [W, S + 1], by the stock forward."""
    logits = (model(window[None, :-1], use_cache=False).logits[0] for window in windows)
    return torch.stack([F.cross_entropy(*pair) for pair in zip(logits, windows[:, 1:], strict=True)])


@torch.no_grad()
def tie_shares(model: Any, windows: Tensor) -> Tensor:
    """Share of rows with more than k keys whose k-th and next score are equal; and equal to zero: [L, 2]."""
    width, causal = model.config.index_topk, causal_mask(windows.shape[1] - 1, windows.device)
    shares: list[Tensor] = []

    def count(scores: Tensor, *_: Tensor) -> None:
        best = scores.masked_fill(~causal, -math.inf)[:, width:].topk(width + 1).values
        tied = best[..., -2] == best[..., -1]
        shares.append(torch.stack([tied, tied & (best[..., -1] == 0)]).float().mean((1, 2)))

    for window in windows:
        run_layers(model, window[None, :-1], sparse=True, watch=count)
    return torch.stack(shares).view(len(windows), -1, 2).mean(0)


def measure(folder: Path, windows: Tensor) -> dict[str, Any]:
    """Losses and ties of a saved checkpoint on windows [W, S + 1]; dense is sparse with room for all keys."""
    window, model = windows.shape[1] - 1, load(folder, windows.device)
    sparse = stock_losses(model, windows)
    dense = stock_losses(load(folder, windows.device, index_topk=window), windows)
    gap, ties = sparse - dense, tie_shares(model, windows)
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
    print("held out:", *(f"\n  {name} {figure}" for name, figure in figures.items()), flush=True)
    return figures


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]  # near-ties fall as in stock
def check_against_stock(model: Any, window: int, seed: int) -> dict[str, float]:
    """Asserts on a random window that this script and transformers agree on logits and on selections.

    Selections are compared on the stock layer's own inputs; only a row with a near-tie may differ.
    """
    calls: list[tuple[Any, Any, Tensor]] = []
    indexers = [layer.self_attn.indexer for layer in model.model.layers]
    hooks = [module.register_forward_hook(lambda *call: calls.append(call)) for module in indexers]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (1, window), generator=generator).to(model.device)
    stock = model.eval()(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    logits = model.lm_head(run_layers(model, tokens, sparse=True))
    losses = [F.cross_entropy(rows[0, :-1], tokens[0, 1:]) for rows in (stock, logits)]
    figures = {
        "logits": (stock - logits).abs().max().item(),
        "loss": (losses[0] - losses[1]).abs().item(),
        "near_tied_rows": sum(differing_rows(*call) for call in calls),
    }
    print("check against stock: differences " + json.dumps(figures), flush=True)
    assert len(calls) == len(indexers)
    # One row that selects otherwise changes all later layers, so the deeper the model the more.
    assert figures["logits"] < 1e-4 or (figures["near_tied_rows"] and figures["loss"] < 1e-2)
    return figures


def differing_rows(indexer: Any, arguments: Any, stock_best: Tensor) -> int:
    """Rows that this script and stock select otherwise; asserts a near-tie at the k-th place of each."""
    hidden, latent, rotary, *_ = arguments
    causal = causal_mask(hidden.shape[1], hidden.device)
    scores = index_scores(indexer, hidden, latent, rotary)
    stock = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, stock_best.long(), True) & causal
    differ = (select(scores, causal, indexer.index_topk) != stock).any(-1)
    best = scores.masked_fill(~causal, -math.inf).topk(indexer.index_topk + 1).values
    near = best[..., -2] - best[..., -1] <= 1e-5 * best[..., 0].abs()
    assert not (differ & ~near).any(), f"layer {indexer.layer_idx} selects otherwise than stock"
    return int(differ.sum())


def parse_options() -> argparse.Namespace:
    """The command line; --smoke puts smaller budgets before it, so that explicit ones still win."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, help="training text, .txt.xz")
    parser.add_argument("--val", type=Path, required=True, help="held-out text, .txt.xz or .jsonl")
    parser.add_argument("--out", type=Path, help="folder for the checkpoint and training.json")
    parser.add_argument("--measure", type=Path, metavar="DIR", help="train nothing: measure this checkpoint")
    parser.add_argument("--start", type=Path, metavar="DIR", help="go on from this checkpoint and tokenizer")
    parser.add_argument("--smoke", action="store_true", help="a minute or two on a CPU, to try the script")
    parser.add_argument("--index-heads", type=int, choices=range(8, 17), default=16, metavar="8..16")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=128, help="width; the other widths go with it")
    parser.add_argument("--index-topk", type=int, default=64, help="keys that an indexer selects")
    parser.add_argument("--dense-steps", type=int, default=3000)
    parser.add_argument("--index-steps", type=int, default=300, help="steps of the indexer warm-up")
    parser.add_argument("--sparse-steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32, help="windows per step")
    parser.add_argument("--micro-batch", type=int, help="windows at a time; the whole batch if not given")
    parser.add_argument("--window", type=int, default=1024, help="tokens per window")
    parser.add_argument("--held-out", type=int, default=64, help="held-out windows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the hot functions")
    smoke = SMOKE_OPTIONS.split() if "--smoke" in sys.argv else []
    options = parser.parse_args([*smoke, *sys.argv[1:]])
    if not options.measure and not (options.train and options.out):
        parser.error("give --train and --out, or --measure")
    return options


def train(options: argparse.Namespace, device: torch.device) -> None:
    """All three stages, a checkpoint after each, and training.json with every figure."""
    limit = SMOKE_CHARACTERS if options.smoke else -1
    documents = read_documents(options.train, limit)
    tokenizer = AutoTokenizer.from_pretrained(options.start) if options.start else train_tokenizer(documents)
    tokens = encode(tokenizer, documents).to(device)
    held_out = encode(tokenizer, read_documents(options.val, limit)).to(device)
    windows = even_windows(held_out, options.window, options.held_out)
    torch.manual_seed(options.seed)
    model = load(options.start, device) if options.start else new_model(options).to(device)
    report: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if tokens.is_cuda else "cpu",
        "training_tokens": len(tokens),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    print(json.dumps(report), flush=True)
    report["check_before"] = check_against_stock(model, options.window, options.seed)
    for stage in STAGES:
        if steps := getattr(options, f"{stage.name}_steps"):
            report[stage.name] = train_stage(model, stage, steps, tokens, options)
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(options.out)
            tokenizer.save_pretrained(options.out)
            saved = load(options.out, device)
            report[stage.name]["check"] = check_against_stock(saved, options.window, options.seed)
            report["held_out"] = report[stage.name]["held_out"] = measure(options.out, windows)
            (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    verdict = "PASS" if report["held_out"]["gap"] <= SPARSE_ALLOWANCE else "FAIL"
    print(f"{verdict}: sparse - dense is to be at most {SPARSE_ALLOWANCE}")


def main() -> None:
    """Trains, or measures a saved checkpoint."""
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile:
        for name in ("attention_states", "index_scores", "attention_target", "index_divergence", "text_loss"):
            globals()[name] = torch.compile(globals()[name])
    if options.measure:
        tokens = encode(AutoTokenizer.from_pretrained(options.measure), read_documents(options.val))
        measure(options.measure, even_windows(tokens.to(device), options.window, options.held_out))
    else:
        train(options, device)


if __name__ == "__main__":
    main()
