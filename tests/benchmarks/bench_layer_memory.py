"""Peak memory and time of one GLM-5-like layer on the CPU, stock against long-window paths.

Each case runs in a process of its own: ``python tests/benchmarks/bench_layer_memory.py --tokens 8192 16384``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import threading
import time
from pathlib import Path

import torch
import transformers

from indexcache.dsa.long.backends import Backends, install

GLM_5_LIKE = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "kv_lora_rank": 512,
    "q_lora_rank": 512,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 2048,
    "max_position_embeddings": 1 << 20,
}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _case(tokens: int, indexer: str, attention: str, threads: int, figures: multiprocessing.Queue) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.GlmMoeDsaForCausalLM(transformers.GlmMoeDsaConfig(**GLM_5_LIKE)).float().eval()
    install(model, Backends(indexer, attention))
    ids = torch.randint(0, 1024, (1, tokens))
    with torch.inference_mode():
        model(input_ids=ids[:, :256], use_cache=False, logits_to_keep=1)
        idle, peak, done = _resident(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                peak[0] = max(peak[0], _resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
    figures.put((peak[0] - idle, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--stock-up-to", type=int, default=8192, help="stock takes 18.4 GB at 8192")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(f"{'tokens':>7} {'indexer':>8} {'attention':>9} {'peak MB':>8} {'seconds':>8}")
    for tokens in options.tokens:
        for indexer, attention in (("stock", "stock"), ("chunked", "stock"), ("chunked", "sparse")):
            if indexer == "stock" and tokens > options.stock_up_to:
                continue
            context = multiprocessing.get_context("spawn")
            figures = context.Queue()
            process = context.Process(target=_case, args=(tokens, indexer, attention, options.threads, figures))
            process.start()
            peak, seconds = figures.get()
            process.join()
            print(f"{tokens:7} {indexer:>8} {attention:>9} {peak / 1e6:8.0f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
