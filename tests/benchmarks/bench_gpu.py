"""Long windows on one GPU: kernels against float64 and the chip's own rates, a 30B model against stock.

``python tests/benchmarks/bench_gpu.py [--only kernels|model] [--out FILE]``; stock runs beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers
from triton.testing import do_bench

from indexcache.dsa.long.backends import Backends, install
from indexcache.dsa.long.kernels.attention import fused_attention
from indexcache.dsa.long.kernels.scores import fused_index_scores
from indexcache.dsa.long.kernels.top import select_top
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.prefill import PrefillClock
from indexcache.dsa.model.tail import Window
from indexcache.pattern import Pattern

CONFIG = Path(__file__).parent / "glm_moe_dsa_30b"
HEADS, DIM, WIDTH, RANK, ROPE = 32, 128, 2048, 512, 64
# The published 1/4 pattern of the paper's 47-layer model.
QUARTER = "FSFSFSSSSFSSSFSSFFSSFSSFSSSSFSSSFSSSSFSSSSSSSSS"

rows: list[dict[str, object]] = []


def say(what: str, **figures: object) -> None:
    rows.append({"what": what, **figures})
    print(f"{what:58}", "  ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


def milliseconds(work) -> float:
    return float(do_bench(work, warmup=20, rep=80, return_mode="median"))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def chip() -> float:
    first, second = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * 8192**3 / milliseconds(lambda: first @ second) / 1e9
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * (1 << 30) / milliseconds(lambda: target.copy_(source)) / 1e9
    say("bf16 matrix product 8192^3", tflops=round(rate))
    say("copy, read and written", tb_per_s=round(copied, 2))
    return rate


def indexer(rate: float, tokens: int, count: int) -> None:
    first = tokens - count
    queries = torch.randn(count, HEADS, DIM, device="cuda").bfloat16()
    keys = torch.randn(tokens, DIM, device="cuda").bfloat16()
    weights = torch.randn(count, HEADS, device="cuda")
    scores = fused_index_scores(queries, keys, weights, first)
    some = torch.randint(0, count, (8,), device="cuda")
    products = torch.einsum("nhd,td->nht", queries[some].double(), keys.double()).relu()
    wanted = torch.einsum("nh,nht->nt", weights[some].double(), products)
    seen = torch.arange(tokens, device="cuda")[None] <= first + some[:, None]
    took = milliseconds(lambda: fused_index_scores(queries, keys, weights, first))
    speed = 2 * HEADS * DIM * (count * first + count * (count + 1) / 2) / took / 1e9
    say(
        f"index scores, {count} queries of {tokens}", error=f"{error(scores[some][seen], wanted[seen]):.1e}",
        ms=round(took, 2), tflops=round(speed), of_matmul=f"{speed / rate:.0%}",
    )  # fmt: skip
    chosen = select_top(scores, first, WIDTH)
    for row in some.tolist():
        best = scores[row, : first + row + 1].topk(WIDTH).values.sort().values
        assert torch.equal(scores[row][chosen[row].long()].sort().values, best), (
            "another selection than torch.topk"
        )
    ours, theirs = (
        milliseconds(lambda: select_top(scores, first, WIDTH)),
        milliseconds(lambda: scores.topk(WIDTH, sorted=False)),
    )
    say(f"top {WIDTH} of them", ms=round(ours, 2), torch_topk_ms=round(theirs, 2), faster=f"{theirs / ours:.2f}x")


def attention(rate: float, tokens: int, count: int, heads: int) -> None:
    first = tokens - count
    queries = torch.randn(heads, count, RANK + ROPE, device="cuda").bfloat16()
    parts = queries[..., :RANK].contiguous(), queries[..., RANK:]
    latent = torch.randn(tokens, RANK + ROPE, device="cuda").bfloat16()
    chosen = torch.rand(count, first, device="cuda").topk(WIDTH).indices.sort().values.int()
    run = lambda: fused_attention(*parts, latent, chosen, first, 0.05, None, True)  # noqa: E731
    some = slice(0, 16)
    keys = latent[chosen[some].long()].double()
    logits = torch.einsum("hnd,nkd->hnk", queries[:, some].double(), keys) * 0.05
    wanted = torch.einsum("hnk,nkr->hnr", logits.softmax(-1), keys[..., :RANK])
    found = run()
    took = milliseconds(run)
    speed = 2 * count * heads * WIDTH * (2 * RANK + ROPE) / took / 1e9
    say(
        f"sparse attention, {heads} heads, {WIDTH} of {tokens} keys", error=f"{error(found[:, some], wanted):.1e}",
        ms=round(took, 2), tflops=round(speed), of_matmul=f"{speed / rate:.0%}",
        gathered_tb_per_s=round(count * WIDTH * (RANK + ROPE) * 2 / took / 1e9, 2),
    )  # fmt: skip


def model_of_the_papers_size() -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(CONFIG)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def fits(work) -> float | None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    except torch.OutOfMemoryError:
        return None


def evaluation(model, backends: Backends, tokens: int) -> float | None:
    """Seconds of one window's evaluation, the loss included; None if it does not fit."""
    remove = install(model, backends, print)
    losses = PatternLosses(model, range(47))
    ids = torch.randint(0, 150_000, (tokens,)).tolist()
    try:
        work = lambda: losses.measure([Pattern.all_full(47)], [Window(tokens, ids)])  # noqa: E731
        return None if fits(work) is None else fits(work)
    finally:
        losses.switch.remove()
        remove()


def windows(model) -> None:
    longest, seconds = 0, 0.0
    for tokens in (4096, 5120, 6144, 7168, 8192, 9216, 10240, 12288, 16384):
        took = evaluation(model, Backends(), tokens)
        if took is None:
            break
        longest, seconds = tokens, took
    say(
        "longest window that fits, stock",
        tokens=longest,
        s=round(seconds, 2),
        tokens_per_s=round(longest / seconds),
    )
    ours = Backends("chunked", "sparse")
    for backends in (ours, Backends("chunked")):
        took = evaluation(model, backends, longest)
        if took is not None:
            say(
                f"evaluation of {longest} tokens, {backends.indexer} indexer, {backends.attention} attention",
                s=round(took, 2), tokens_per_s=round(longest / took), of_stock=f"{seconds / took:.1f}x",
            )  # fmt: skip
    for tokens in (32768, 131072, 200704):
        took = evaluation(model, ours, tokens)
        peak = torch.cuda.max_memory_allocated() / 1e9
        say(f"evaluation of {tokens} tokens, ours", s=took and round(took, 2), peak_gb=round(peak, 1))


def prefills(model) -> None:
    remove = install(model, Backends("chunked", "sparse"), print)
    clock = PrefillClock(model, range(47))
    for tokens in (10240, 32768, 65536, 131072, 200704):
        ids = torch.randint(0, 150_000, (tokens,)).tolist()
        repeats = 3 if tokens < 100_000 else 1
        try:
            full, quarter = clock.time([Pattern.all_full(47), Pattern(QUARTER)], ids, repeats)
        except torch.OutOfMemoryError:
            say(f"prefill of {tokens} tokens", fits=False)
            break
        say(
            f"prefill of {tokens} tokens, all full and 12 of 47", full_s=round(full.seconds, 2),
            quarter_s=round(quarter.seconds, 2), speedup=f"{full.seconds / quarter.seconds:.2f}x",
            indexers=f"{full.indexer_share:.0%} and {quarter.indexer_share:.0%}",
        )  # fmt: skip
    clock.close()
    remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("kernels", "model"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "transformers", transformers.__version__)
    if options.only != "model":
        rate = chip()
        for tokens, count in ((32768, 4096), (131072, 2048)):
            indexer(rate, tokens, count)
        for heads in (20, 64, 128):
            attention(rate, 131072, 4096, heads)
    if options.only != "kernels":
        torch.cuda.empty_cache()
        model = model_of_the_papers_size()
        count = sum(weight.numel() for weight in model.parameters())
        say("model", parameters=f"{count / 1e9:.1f}B", gb=round(torch.cuda.memory_allocated() / 1e9, 1))
        windows(model)
        prefills(model)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
