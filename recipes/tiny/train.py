"""Trains the embedded tiny DSA model from scratch on one GPU, in a given time: dense, indexer warm-up, sparse."""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GlmMoeDsaConfig, GlmMoeDsaForCausalLM

from indexcache.calibrate.probes import KINDS, Probe
from indexcache.recipes.tiny import forward
from indexcache.recipes.tiny.batches import TRAINED_KINDS, Batches, ProbeMill, held_out_probes
from indexcache.recipes.tiny.held_out import check_against_stock, load, measure
from indexcache.recipes.tiny.text import VOCABULARY, encode, even_windows, read_documents, train_tokenizer

SPARSE_ALLOWANCE = 0.03  # nats per token by which the sparse loss may exceed the dense one
SMOKE_CHARACTERS = 2_000_000
SMOKE_OPTIONS = "--seconds 45 --reserve 15 --batch-tokens 1024 --lengths 256 512 --held-out 4 --probes 2 --pool 64"
PROBED_LENGTH = 512  # shorter windows are too short for a probe of some kind
LEAST_RATE = 0.1  # of the peak, at a stage's end
REPORTS = 20  # lines that a stage prints


@dataclass(frozen=True)
class Stage:
    """What one stage runs and learns; `share` is of the training time, `peak_rate` the highest learning rate."""

    name: str
    share: float
    peak_rate: float
    sparse: bool
    learns_text: bool
    learns_index: bool

    def lengths(self, lengths: list[int]) -> list[int]:
        """Window lengths, shortest first, each for an equal part of the stage: only text needs the short ones."""
        return lengths[-2:] if self.learns_index else lengths


STAGES = (
    Stage("dense", 0.56, 2e-3, sparse=False, learns_text=True, learns_index=False),
    Stage("index", 0.11, 2e-3, sparse=False, learns_text=False, learns_index=True),
    Stage("sparse", 0.33, 5e-4, sparse=True, learns_text=True, learns_index=True),
)


def new_model(options: argparse.Namespace) -> Any:
    """An untrained model in fp32; all its layers have a dense MLP and an indexer of their own."""
    layers, hidden = options.layers, options.hidden
    config = GlmMoeDsaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        first_k_dense_replace=layers, n_routed_experts=4, num_experts_per_tok=1,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=hidden // 2, kv_lora_rank=3 * hidden // 8,
        qk_nope_head_dim=hidden // 4, qk_rope_head_dim=16, v_head_dim=hidden // 4,
        index_n_heads=options.index_heads, index_head_dim=64, index_topk=options.index_topk,
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        # transformers reads none of these; engines read all, as in GLM-5's own config.
        indexer_rope_interleave=True, topk_method="noaux_tc", scoring_func="sigmoid", moe_layer_freq=1,
    )  # fmt: skip
    return GlmMoeDsaForCausalLM(config)


def learn_padding_row(model: Any) -> None:
    """Lets the model learn the embedding of its padding token, which transformers keeps at zero.

    Here that token is <|endoftext|>, which all documents begin with. A window that begins with a zero embedding is
    zero at its first position in every layer. RMSNorm's backward multiplies by 1 / sqrt(eps) there, in layer after
    layer, until the gradient overflows.
    """
    table = model.get_input_embeddings()
    row, table.padding_idx = table.padding_idx, None
    if row is not None and not table.weight[row].any():
        with torch.no_grad():
            table.weight[row].normal_(0, model.config.initializer_range)


def accumulate(model: Any, batch: tuple[Tensor, Tensor], stage: Stage, options: argparse.Namespace) -> Tensor:
    """Adds the gradients of windows [B, S + 1] and their answers [B, S]; returns loss, answers' loss and KL [3].

    A layer's KL touches its own indexer alone and goes backward at once: memory holds one layer's scores. It is of
    every n-th row, from a random first one on, and so a fair estimate of all rows' at a fraction of the time.
    """
    windows, answers = batch
    device = windows.device
    figures = torch.zeros(3, device=device)
    first = int(torch.randint(options.row_stride, ()))
    rows = torch.arange(first, windows.shape[1] - 1, options.row_stride, device=device)

    def learn_index(view: forward.LayerView) -> None:
        allowed = view.allowed[:, rows]
        scores = forward.index_scores(view.module.indexer, view.hidden, view.latent, view.rotary, rows)
        with torch.autocast(device.type, enabled=False):
            target = forward.attention_target(view.query[:, :, rows], view.key, allowed, view.module.scaling)
            divergence = forward.index_divergence(scores, target, allowed) / len(model.model.layers)
            torch.autograd.backward(divergence)
        figures[2] += divergence.detach()

    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        watch = learn_index if stage.learns_index else None
        # With gradients even where the text is not learned: so all stages share what is compiled.
        hidden = forward.run_layers(model, windows[:, :-1], stage.sparse, watch)
        losses = forward.token_losses(model, hidden.flatten(0, 1), windows[:, 1:].flatten())
    if stage.learns_text:
        figures[0] = losses.detach().mean()
        answer_loss = (losses * answers.flatten()).sum() / answers.sum().clamp(min=1)
        figures[1] = answer_loss.detach()
        torch.autograd.backward(losses.mean() + options.answer_weight * answer_loss)
    return figures


def rate_share(progress: float) -> float:
    """Learning rate as a share of its peak: linear over the first 3 %, then a cosine down to a tenth."""
    if progress < 0.03:
        return max(progress / 0.03, 0.01)
    cosine = (1 + math.cos(math.pi * min(1, (progress - 0.03) / 0.97))) / 2
    return LEAST_RATE + (1 - LEAST_RATE) * cosine


class Learner:
    """Weights in training: a fresh optimizer over what a stage learns, and how its steps went."""

    def __init__(self, model: Any, stage: Stage) -> None:
        # Two losses on disjoint parameters: each is clipped apart, so that neither shrinks the other.
        indexers = [weight for name, weight in model.named_parameters() if ".indexer." in name]
        others = [weight for name, weight in model.named_parameters() if ".indexer." not in name]
        self.parts = [indexers] * stage.learns_index + [others] * stage.learns_text
        weights = [weight for part in self.parts for weight in part]
        self.optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), fused=True)
        self.peak = stage.peak_rate
        self.skipped, self.largest_norm = torch.zeros(2, device=weights[0].device)

    def step(self, progress: float) -> None:
        """One step on the gradients that were gathered; none where their norm is not finite."""
        norms = torch.stack([nn.utils.clip_grad_norm_(part, 1.0) for part in self.parts])
        skipped = (~norms.isfinite().all()).float()
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * rate_share(progress)
        # As GradScaler does it: a fused optimizer reads this on the device, and no step waits for a figure.
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped = self.skipped + skipped
        self.largest_norm = torch.maximum(self.largest_norm, norms.nan_to_num(0, posinf=0).max())

    def report(self) -> dict[str, float]:
        """Steps skipped and the largest finite norm of a gradient since the last report; waits for the device."""
        figures = {"skipped": self.skipped.item(), "norm": self.largest_norm.item()}
        self.skipped, self.largest_norm = torch.zeros_like(self.skipped), torch.zeros_like(self.skipped)
        return figures


@contextmanager
def training_mode(model: Any) -> Iterator[None]:
    """What the compiler looks at besides shapes is the same for all steps: a model in training, TF32 allowed."""
    model.train()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def warm_up(model: Any, stages: list[Stage], batches: Batches, options: argparse.Namespace) -> None:
    """Runs every stage's step once at every length, so that compiling takes none of the training time."""
    for stage, length in [(some, length) for some in stages for length in some.lengths(options.lengths)]:
        began = time.perf_counter()
        try:
            with training_mode(model):
                accumulate(model, batches.draw(length), stage, options)
        except Exception as error:  # whatever the compiler raises in a backward: slower is better than not at all
            torch.compiler.set_stance("force_eager")
            print(f"runs without the compiler, which failed: {error}", flush=True)
        model.zero_grad()
        print(f"{stage.name:6} {length:5} tokens: ready in {time.perf_counter() - began:.1f} s", flush=True)


def train_stage(model: Any, stage: Stage, seconds: float, batches: Batches, options: Any) -> dict[str, Any]:
    """Runs one stage for so many seconds and returns its figures."""
    learner, lengths = Learner(model, stage), stage.lengths(options.lengths)
    recent: list[Tensor] = []
    curve: list[dict[str, float]] = []
    steps = tokens = 0
    began = time.perf_counter()
    progress, reported = 0.0, 0.0
    while progress < 1:
        batch = batches.draw(lengths[int(progress * len(lengths))])
        recent.append(accumulate(model, batch, stage, options))
        learner.step(progress)
        steps, tokens = steps + 1, tokens + batch[1].numel()
        progress = (time.perf_counter() - began) / seconds
        if progress - reported >= 1 / REPORTS or progress >= 1:
            figures = torch.stack(recent).nanmean(0).tolist()  # a skipped step's loss may be none
            recent.clear()
            reported, elapsed = progress, time.perf_counter() - began
            named = dict(zip(("loss", "answers", "kl"), figures, strict=True)) | learner.report()
            line = "  ".join(f"{name} {figure:.4g}" for name, figure in named.items())
            curve.append(named | {"step": steps, "seconds": elapsed})
            length, speed = batch[1].shape[1], f"{tokens / elapsed:,.0f} tokens/s"
            print(f"{stage.name:6} {length:5} {steps:6} {elapsed:4.0f} s  {line}  {speed}", flush=True)
    return {"steps": steps, "tokens": tokens, "seconds": elapsed, "lengths": lengths, "curve": curve}


def add_model_and_data_options(parser: argparse.ArgumentParser) -> None:
    """The model's shape, and what its batches are made of."""
    parser.add_argument("--index-heads", type=int, choices=range(8, 17), default=16, metavar="8..16")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=128, help="width; the other widths go with it")
    parser.add_argument("--index-topk", type=int, default=64, help="keys that an indexer selects")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048], help="tokens of a window")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="tokens a step")
    parser.add_argument("--row-stride", type=int, default=4, help="indexers learn from every n-th row")
    parser.add_argument("--probe-share", type=float, default=0.35, help="share of windows with probes in them")
    kinds: dict[str, Any] = {"nargs": "+", "choices": KINDS, "default": list(TRAINED_KINDS), "metavar": "KIND"}
    parser.add_argument("--kinds", **kinds, help="of probes to train on; one named twice comes twice as often")
    parser.add_argument("--answer-weight", type=float, default=1.0, help="of the answers' loss beside the text's")
    parser.add_argument("--pool", type=int, default=12288, help="windows with probes of the longest length")


def parse_options() -> argparse.Namespace:
    """The command line; --smoke puts smaller budgets before it, so that explicit ones still win."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, help="training text, .txt.xz")
    parser.add_argument("--val", type=Path, required=True, help="held-out text, .txt.xz or .jsonl")
    parser.add_argument("--out", type=Path, help="folder for the checkpoint and training.json")
    parser.add_argument("--measure", type=Path, metavar="DIR", help="train nothing: measure this checkpoint")
    parser.add_argument("--start", type=Path, metavar="DIR", help="go on from this checkpoint")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="use this tokenizer instead of a new one")
    parser.add_argument("--smoke", action="store_true", help="a minute or two on a CPU, to try the script")
    parser.add_argument("--seconds", type=float, default=540, help="time for everything")
    parser.add_argument("--reserve", type=float, default=90, help="seconds of it for measuring and saving")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], metavar="STAGE")
    parser.add_argument("--shares", type=float, nargs="+", help="of the time, one for each of these stages")
    parser.add_argument(
        "--rates", type=float, nargs="+", help="highest learning rates, one for each of these stages"
    )
    add_model_and_data_options(parser)
    parser.add_argument("--held-out", type=int, default=64, help="held-out windows")
    parser.add_argument("--probes", type=int, default=32, help="held-out probes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the hot functions")
    smoke = SMOKE_OPTIONS.split() if "--smoke" in sys.argv else []
    options = parser.parse_args([*smoke, *sys.argv[1:]])
    if not options.measure and not (options.train and options.out):
        parser.error("give --train and --out, or --measure")
    count = len(options.stages or STAGES)
    for name, given in (("--shares", options.shares), ("--rates", options.rates)):
        if given and len(given) != count:
            parser.error(
                f"{name} has {len(given)} numbers, but {count} stages run: give one for each, in their order"
            )
    return options


def chosen_stages(options: argparse.Namespace) -> list[Stage]:
    """The stages to run, with the shares of time and learning rates that are asked for."""
    stages = [stage for stage in STAGES if not options.stages or stage.name in options.stages]
    shares = options.shares or [stage.share for stage in stages]
    rates = options.rates or [stage.peak_rate for stage in stages]
    given = zip(stages, shares, rates, strict=True)
    return [replace(stage, share=share, peak_rate=rate) for stage, share, rate in given]


HeldOut = list[tuple[Tensor, list[Probe]]]  # windows [W, S + 1] and probes of S tokens, a length each


def held_out_sets(tokenizer: Any, options: argparse.Namespace, device: torch.device) -> HeldOut:
    """Held-out windows and probes at the two longest lengths that the model is trained on."""
    documents = read_documents(options.val, SMOKE_CHARACTERS if options.smoke else -1)
    tokens = encode(tokenizer, documents).to(device)
    sets = []
    for length in options.lengths[-2:]:
        windows = even_windows(tokens, length, options.held_out)
        probed = options.probe_share and length >= PROBED_LENGTH
        sets.append((windows, held_out_probes(tokenizer, documents, length, options.probes if probed else 0)))
    return sets


def make_batches(tokenizer: Any, documents: list[str], options: Any, device: torch.device) -> Batches:
    """Text and probes for training, on the device."""
    lengths = options.lengths if options.probe_share else []
    mill = ProbeMill(tokenizer, documents, lengths, options.pool, options.seed, options.kinds)
    tokens = encode(tokenizer, documents)
    probes = mill.windows(device)
    return Batches(tokens.to(device), probes, options.probe_share, options.batch_tokens, options.seed)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """The checkpoint in bf16, whatever it is trained in, with its tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    # transformers derives the layers' types; the older ones of some engines reject the name that it has for them.
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["layer_types"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    tokenizer.save_pretrained(folder)


def train(options: argparse.Namespace, device: torch.device, began: float) -> None:
    """All stages, a checkpoint after each, and training.json with every figure."""
    stages = chosen_stages(options)
    documents = read_documents(options.train, SMOKE_CHARACTERS if options.smoke else -1)
    source = options.tokenizer or options.start
    tokenizer = AutoTokenizer.from_pretrained(source) if source else train_tokenizer(documents)
    batches = make_batches(tokenizer, documents, options, device)
    held_out = held_out_sets(tokenizer, options, device)
    torch.manual_seed(options.seed)
    model = load(options.start, device) if options.start else new_model(options).to(device)
    learn_padding_row(model)
    report: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "training_tokens": len(batches.tokens),
        "probe_windows": {length: len(ids) for length, (ids, _) in batches.probes.items()},
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    print(json.dumps(report), flush=True)
    report["check_before"] = check_against_stock(model, options.lengths[-1], options.seed)
    assert report["check_before"]["agrees"], "this script's forward is not that of transformers"
    print(f"data and model ready after {time.perf_counter() - began:.0f} s", flush=True)
    warm_up(model, stages, batches, options)
    spent = time.perf_counter() - began
    training_time = max(options.seconds - spent - options.reserve, options.seconds / 5)
    print(f"{spent:.0f} s spent; training takes {training_time:.0f} s", flush=True)
    for stage in stages:
        seconds = training_time * stage.share / sum(other.share for other in stages)
        with training_mode(model):
            report[stage.name] = train_stage(model, stage, seconds, batches, options)
        save(model, tokenizer, options.out)
        saved = load(options.out, device)
        report[stage.name]["check"] = check_against_stock(saved, options.lengths[-1], options.seed)
        if stage.learns_index or stage is stages[-1]:  # learning the index leaves the dense figures as they are
            report["held_out"] = report[stage.name]["held_out"] = [
                measure(options.out, *given) for given in held_out
            ]
        (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(f"{stage.name} stage saved after {time.perf_counter() - began:.0f} s", flush=True)
    passed = all(figures["gap"] <= SPARSE_ALLOWANCE for figures in report["held_out"])
    print(f"{'PASS' if passed else 'FAIL'}: sparse - dense is to be at most {SPARSE_ALLOWANCE}")


def main() -> None:
    """Trains, or measures a saved checkpoint."""
    began = time.perf_counter()
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile:
        forward.compile_parts()
    if options.measure:
        tokenizer = AutoTokenizer.from_pretrained(options.measure)
        for windows, probes in held_out_sets(tokenizer, options, device):
            measure(options.measure, windows, probes)
    else:
        train(options, device, began)


if __name__ == "__main__":
    main()
