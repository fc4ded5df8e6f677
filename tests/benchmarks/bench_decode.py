"""Decode behind long caches: an output token all full, under a quarter and uniform, beside what bytes predict.

``python tests/benchmarks/bench_decode.py [--config FOLDER] [--lengths 8k,32k] [--batch 1,8] [--out FILE]``. The
model has random weights, the cache random keys. Steps are replayed as a CUDA graph where they can be captured, and
launched one by one (eager) as well; all full runs in turn with the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path

import torch
import transformers

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sizes.caches import step_reads
from indexcache.dsa.chunks import out_of_memory
from indexcache.dsa.decode.busy import watch
from indexcache.dsa.decode.clock import Decode, DecodeClock
from indexcache.dsa.long.backends import Backends, install
from indexcache.pattern import Pattern
from indexcache.recipes.numbers import lengths

CONFIG = Path(__file__).parent / "glm_moe_dsa_30b"
# The published 1/4 pattern of the paper's 47-layer model.
QUARTER = "FSFSFSSSSFSSSFSSFFSSFSSFSSSSFSSSFSSSSFSSSSSSSSS"
rows: list[dict[str, object]] = []


def say(what: str, **figures: object) -> None:
    rows.append({"what": what, **figures})
    print(f"{what:44}", "  ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that the device reads, by the best of some sums over 1 GiB (64 MiB on a CPU)."""
    source = torch.ones((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device)
    best = 0.0
    for _ in range(6):
        synchronise(device)
        began = time.perf_counter()
        source.sum()
        synchronise(device)
        best = max(best, source.nbytes / (time.perf_counter() - began))
    return best


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def patterns_of(sites: int) -> dict[str, Pattern]:
    quarter = Pattern(QUARTER) if sites == len(QUARTER) else Pattern.uniform(sites, -(-sites // 4))
    return {
        "all full": Pattern.all_full(sites),
        "quarter": quarter,
        "uniform": Pattern.uniform(sites, quarter.kept),
    }


def timed(clock: DecodeClock, patterns, tokens, batch: int, options) -> list[Decode] | None:
    """None where it does not fit."""
    try:
        return clock.time(list(patterns.values()), tokens, batch, options.repeats, options.steps)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Out of the handler, which holds on to the frames and so to their tensors.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def measure(model, checkpoint, rate: float, options) -> None:
    patterns, sites = patterns_of(len(checkpoint.site_layers)), checkpoint.site_layers
    for context in lengths(options.lengths):
        for batch in map(int, options.batch.split(",")):
            place = f"{context} tokens, batch {batch}"
            reads = {
                name: step_reads(checkpoint, context, batch, {sites[site] for site in pattern.full}, 2, True)
                for name, pattern in patterns.items()
            }
            full, quarter = reads["all full"], reads["quarter"]
            say(
                f"{place}, predicted by bytes",
                gb=f"{full.all / 1e9:.2f} and {quarter.all / 1e9:.2f}",
                weights_gb=f"{full.weights / 1e9:.2f}", keys_gb=f"{full.keys / 1e9:.3f}",
                index_keys_gb=f"{full.index_keys / 1e9:.2f} and {quarter.index_keys / 1e9:.2f}",
                full_ms=f"{1e3 * full.all / rate:.2f}", quarter_ms=f"{1e3 * quarter.all / rate:.2f}",
                speedup=f"{full.all / quarter.all:.2f}x",
            )  # fmt: skip
            for is_graph in (True, False) if torch.cuda.is_available() else (False,):
                clock = DecodeClock(model, sites, latent=True)
                clock.is_graph = is_graph
                took = timed(clock, patterns, ids_of(checkpoint.vocabulary, context - 1), batch, options)
                clock.close()
                if took is None:
                    say(f"{place}, measured", fits=False)
                    break
                say_times(place, patterns, took, full.all, clock.is_graph)
                if is_graph and not clock.is_graph:
                    break  # it could not be captured, and was launched one by one


def ids_of(vocabulary: int, count: int) -> list[int]:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def say_times(place: str, patterns, took: list[Decode], read: int, is_graph: bool) -> None:
    times = dict(zip(patterns, took, strict=True))
    full = times["all full"]
    figures = {f"{name.replace(' ', '_')}_ms": in_milliseconds(decode) for name, decode in times.items()}
    share = {} if full.indexer_share is None else {"indexers": f"{full.indexer_share:.0%}"}
    say(
        f"{place}, {'CUDA graph' if is_graph else 'eager'}",
        **figures, speedup=f"{full.seconds / times['quarter'].seconds:.2f}x",
        read_tb_per_s=f"{read / full.seconds / 1e12:.2f}", **share,
    )  # fmt: skip


def in_milliseconds(decode: Decode) -> str:
    """The median run, the fastest and the slowest."""
    middle, least, most = (f"{1e3 * seconds:.2f}" for seconds in (decode.seconds, decode.least, decode.most))
    return f"{middle} ({least}-{most})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--lengths", default="8k,32k,64k,128k")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(name, "torch", torch.__version__, "transformers", transformers.__version__, flush=True)
    checkpoint = open_checkpoint(str(options.config))
    rate = bandwidth(device)
    say("reads", tb_per_s=f"{rate / 1e12:.3f}")
    busy = watch(device)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    count = sum(weight.numel() for weight in model.parameters())
    say("model", parameters=f"{count / 1e9:.1f}B", bf16_gb=f"{2 * count / 1e9:.1f}")
    install(model, Backends("chunked", "sparse"), print)
    measure(model, checkpoint, rate, options)
    say("others on the machine", seen=busy() or "none")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
