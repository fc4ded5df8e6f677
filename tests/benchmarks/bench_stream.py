"""Layers that stream against the same model in memory: bytes moved, tokens a second, more than the GPU holds.

``make bench-stream`` runs it on one GPU, ``make bench-stream-2`` on two; ``--smoke`` tries it in small on a CPU.
A checkpoint of random weights is written to ``--folder`` first and left there.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import SMALL, first_layers, write_checkpoint

from indexcache.dsa.checkpoint.config import Checkpoint, open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.long.backends import Backends, install
from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.load import load_layers
from indexcache.dsa.stream.room import Room
from indexcache.evaluate import CALIBRATION, HELD_OUT, Request
from indexcache.pattern import Pattern
from indexcache.search.cost import LayerCount, Shape
from indexcache.search.goal import Goal, Method
from indexcache.search.run.records import JournalContent
from indexcache.search.run.replay import ReplayedEvaluator
from indexcache.search.search import Problem, SearchProgress, choose
from indexcache.system import processes

GB = 1e9


@dataclass(frozen=True)
class Layout:
    """Where the layers of a model are between sweeps."""

    name: str
    room: Room


class Bench:
    """One model in one layout.

    Args:
        checkpoint: of random weights.
        layout: where its layers are.
        tokens: of a window.
        windows: how many.
    """

    def __init__(self, checkpoint: Checkpoint, layout: Layout, tokens: int, windows: int) -> None:
        began = now()
        self.checkpoint, self.layout, self.tokens = checkpoint, layout, tokens
        self.model = load_layers(checkpoint, find_weights(checkpoint), "bfloat16", layout.room)
        on_gpu = processes.process_device().type == "cuda"
        install(self.model, Backends("chunked", "sparse" if on_gpu else "stock"), lambda line: None)
        self.load_seconds = now() - began
        self.losses = PatternLosses(
            self.model, checkpoint.site_layers, blind=checkpoint.selection_width, row_budget=8 << 30
        )
        draw = random.Random(0)
        self.windows = [
            Window((CALIBRATION, number), [draw.randrange(checkpoint.vocabulary) for _ in range(tokens)])
            for number in range(windows)
        ]
        self.full = Pattern.all_full(len(checkpoint.site_layers))
        self.losses.compare([self.full], self.windows[:1])  # kernels are compiled

    def measure(self, patterns: Sequence[Pattern], windows: Sequence[Window]) -> dict[str, Any]:
        """Seconds of one sweep, and what it moved."""
        self.losses.compare([self.full], windows)  # all full is known
        moved = self.losses.weight_bytes
        began = now()
        losses = self.losses.compare(patterns, windows)
        seconds = now() - began
        stream = stream_of(self.model)
        return {
            "seconds": seconds,
            "tokens_per_second": len(windows) * len(patterns) * self.tokens / seconds,
            "moved": 0.0 if stream is None else (self.losses.weight_bytes - moved) / stream.sweep_bytes,
            "losses": [loss.loss for window in losses for loss in window],
        }


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def say(what: str, **figures: Any) -> None:
    """A line of the table; one process speaks."""
    if processes.is_main():
        print(f"{what:64}", "  ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


def layouts(checkpoint: Checkpoint) -> list[Layout]:
    """All in memory; half of the layers, and all, in the host's; all in files."""
    weights = find_weights(checkpoint)
    size = sum(tensor.size for shard in weights.shards for tensor in shard.tensors.values())
    layer = size / checkpoint.layers
    small = round(4.5 * layer + 8 * checkpoint.vocabulary * checkpoint.text.hidden_size)
    return [
        Layout("all in GPU memory", Room()),
        Layout("half of the layers in host memory", Room(round(size / 2 + 3 * layer), 1 << 50)),
        Layout("all in host memory", Room(small, 1 << 50)),
        Layout("all in files", Room(small, 0)),
    ]


def stream_part(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Bytes moved, and tokens a second, of 8 windows and of 6 candidates on 4."""
    sites = len(checkpoint.site_layers)
    step = max(1, (sites - 1) // 6)
    candidates = [Pattern.all_full(sites).share(site) for site in range(1, sites, step)][:6]
    baseline: dict[str, dict[str, Any]] = {}
    for layout in layouts(checkpoint):
        bench = Bench(checkpoint, layout, options.tokens, 8)
        stream = stream_of(bench.model)
        for name, patterns, windows in (
            ("1 pattern x 8 windows", [bench.full], bench.windows),
            ("6 candidates x 4 windows", candidates, bench.windows[:4]),
        ):
            figures = min((bench.measure(patterns, windows) for _ in range(3)), key=lambda run: run["seconds"])
            stock = baseline.setdefault(name, figures)
            say(
                f"{layout.name}, {name}",
                s=f"{figures['seconds']:.2f}",
                tokens_per_s=f"{figures['tokens_per_second']:,.0f}",
                of_memory=f"{stock['seconds'] / figures['seconds']:.3f}",
                streamed=0 if stream is None else len(stream.host) + len(stream.files),
                moved=f"{figures['moved']:.2f}x",
                equal=figures["losses"] == stock["losses"],
                load_s=f"{bench.load_seconds:.1f}",
            )
        del bench
        free()


def together_part(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """16 windows on all processes, the layers in host memory, a part on each; alone it is what to compare with."""
    size = sum(t.size for shard in find_weights(checkpoint).shards for t in shard.tensors.values())
    for layout in layouts(checkpoint)[2:]:
        bench = Bench(checkpoint, layout, options.tokens, 16)
        evaluate = Evaluator(bench.losses, {CALIBRATION: bench.windows})
        request = Request([bench.full], range(16), CALIBRATION)
        evaluate.sweep([request])
        seconds = []
        for _ in range(3):
            processes.merge({processes.process_index(): 0})
            began = now()
            losses = evaluate.sweep([request])
            seconds.append(now() - began)
        resident = sum(processes.merge({processes.process_index(): anonymous_bytes()}).values())
        say(
            f"{processes.process_count()} processes, {layout.name}, 16 windows",
            s=f"{min(seconds):.2f}",
            tokens_per_s=f"{16 * options.tokens / min(seconds):,.0f}",
            host_memory=f"{resident / size:.2f} copies",
            loss=repr(math.fsum(loss.loss for loss in losses[0][0])),
        )
        del bench, evaluate
        free()


def large_part(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Three greedy steps on a checkpoint larger than the GPU, from files, beside its first layers in memory.

    The first layers are as many as fit into the device's memory. A step has a candidate for each layer, and ten of
    them, evenly spread, tell as much of a sweep's speed as 83.
    """
    size = sum(t.size for shard in find_weights(checkpoint).shards for t in shard.tensors.values())
    disk = direct_rate(sorted(options.folder.glob("layer-*.safetensors"))[-2:])
    say("checkpoint", gb=f"{size / GB:.1f}", layers=checkpoint.layers, disk_past_the_cache=f"{disk / GB:.2f} GB/s")
    memory = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else size
    fitting = min(checkpoint.layers // 2, int(0.72 * memory / (size / checkpoint.layers)))
    fits = open_checkpoint(str(first_layers(options.folder, fitting)))
    stock = three_steps(Bench(fits, Layout("memory", Room()), options.tokens, 4), options)
    free()
    streamed = Layout("files", Room(options.large_room, options.large_host))
    three_steps(Bench(checkpoint, streamed, options.tokens, 4), options, stock, disk)


def three_steps(bench: Bench, options: argparse.Namespace, stock: float = 0, disk: float = 0) -> float:
    """Layer-tokens a second of three greedy steps, printed beside ``stock`` and what reading would take."""
    stream, runs, moved = stream_of(bench.model), bench.losses.layer_runs, bench.losses.weight_bytes
    layers, where = bench.checkpoint.layers, f"three steps, {bench.checkpoint.layers} layers, {bench.layout.name}"
    say(where, load_s=f"{bench.load_seconds:.1f}", streamed=0 if stream is None else len(stream.files))
    problem, count = removals(bench, options)
    with Busy() as busy, cold(options.cold and stream is not None):
        began = now()
        choose(
            problem, SearchProgress(step=lambda step: say("step", removed=step.removed, s=f"{now() - began:.1f}"))
        )
        seconds = now() - began
    runs, read = bench.losses.layer_runs - runs, bench.losses.weight_bytes - moved
    rate = runs * options.tokens / seconds
    say(
        where + (", page cache emptied" if options.cold and stream is not None else ""),
        s=f"{seconds:.1f}",
        sweeps=count.sweeps,
        rows_of_all_layers=f"{runs / layers:.1f}",
        layer_tokens_per_s=f"{rate:,.0f}",
        of_memory=f"{rate / stock:.3f}" if stock else "-",
        read_gb=f"{read / GB:.0f}",
        read_gb_per_s=f"{read / seconds / GB:.2f}",
        reading_past_the_cache_s=f"{read / disk:.0f}" if disk else "-",
        files_gave="-" if stream is None else f"{stream.file_rate / GB:.2f} GB/s",
        gpu_busy=f"{busy.share:.0%}",
    )
    return rate


def removals(bench: Bench, options: argparse.Namespace) -> tuple[Problem, LayerCount]:
    """Three greedy steps over sites evenly spread, the others pinned, and the count of what they take."""
    sites, layers = len(bench.checkpoint.site_layers), bench.checkpoint.layers
    evaluate = Evaluator(bench.losses, {CALIBRATION: bench.windows, HELD_OUT: bench.windows[:1]})
    sizes = {CALIBRATION: 4, HELD_OUT: 1}
    count = LayerCount(Shape(bench.checkpoint.site_layers, layers, 4, 1))
    asked = range(1, sites, max(1, (sites - 1) // options.large_candidates))
    return Problem(
        ReplayedEvaluator(JournalContent(), count, evaluate),
        labels={name: [options.tokens - 1] * number for name, number in sizes.items()},
        documents={name: list(range(number)) for name, number in sizes.items()},
        sites=sites,
        goal=Goal(keep=(sites - 3) / sites),
        method=Method(order=tuple(asked), pinned=tuple(sorted(set(range(sites)) - set(asked)))),
    ), count


def direct_rate(paths: Sequence[Path]) -> float:
    """Bytes a second that the disk gives past the page cache, as several threads read them."""
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        size = sum(pool.map(direct_bytes, [(path, part) for path in paths for part in range(4)]))
    return size / (time.perf_counter() - began)


def direct_bytes(job: tuple[Path, int]) -> int:
    """Reads a quarter of a file past the page cache."""
    path, part = job
    piece = mmap.mmap(-1, 16 << 20)  # O_DIRECT asks for memory and places at whole blocks
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        quarter = os.fstat(file).st_size // 4 // len(piece) * len(piece)
        return sum(os.preadv(file, [piece], part * quarter + at) for at in range(0, quarter, len(piece)))
    finally:
        os.close(file)


@contextmanager
def cold(wanted: bool) -> Iterator[None]:
    """Within the block the kernel forgets the files that it has read, every two seconds; for root only."""
    ended = threading.Event()

    def forget() -> None:
        while not ended.wait(2):
            Path("/proc/sys/vm/drop_caches").write_text("1", "ascii")

    thread = threading.Thread(target=forget, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def dequantise_part(checkpoint: None, options: argparse.Namespace) -> None:
    """FP8 experts of a DeepSeek-V3.2 layer to bf16, by PyTorch's operations and by the kernel."""
    experts, shapes = (2, ((256, 256), (256, 128))) if options.smoke else (256, ((2048, 7168), (7168, 2048)))
    device = processes.process_device()
    ways: dict[str, Callable[..., None]] = {"PyTorch's operations, expert by expert": by_operations}
    if device.type == "cuda":
        ways |= {"the kernel, expert by expert": by_kernel, "the kernel, all experts at once": all_by_kernel}
    seconds, equal, moved = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, True), 0
    # Gates and ups are alike; as they are two of three matrices, they count twice.
    for weight, (rows, columns) in zip((2, 1), shapes, strict=True):
        codes = torch.randn(experts, rows, columns, device=device, dtype=torch.bfloat16).to(torch.float8_e4m3fn)
        scales = torch.rand(experts, rows // 128, columns // 128, device=device) + 0.5
        out = torch.empty(codes.shape, dtype=torch.bfloat16, device=device)
        moved += weight * (codes.nbytes + scales.nbytes + out.nbytes)
        wanted: torch.Tensor | None = None
        for name, way in ways.items():
            way(codes, scales, out)
            taken = []
            for _ in range(3):
                began = now()
                way(codes, scales, out)
                taken.append(now() - began)
            seconds[name] += weight * min(taken)
            wanted = out.clone() if wanted is None else wanted
            equal[name] &= torch.equal(out, wanted)
        del codes, scales, out, wanted
        free()
    for name, taken_together in seconds.items():
        say(
            f"FP8 to bf16, {experts} experts, {name}",
            ms=f"{1000 * taken_together:.1f}",
            tb_per_s=f"{moved / taken_together / 1e12:.2f}",
            equal=equal[name],
        )


def by_operations(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    for expert, scale, place in zip(codes, scales, out, strict=True):
        wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        place.copy_(expert.float().mul_(wide))


def by_kernel(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    from indexcache.dsa.stream.kernels import scale_blocks

    for expert, scale, place in zip(codes, scales, out, strict=True):
        scale_blocks([expert], [scale], (128, 128), [place])


def all_by_kernel(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    from indexcache.dsa.stream.kernels import scale_blocks

    scale_blocks(codes.unbind(), scales.unbind(), (128, 128), out.unbind())


class Busy:
    """The share of samples in which the GPU ran a kernel, by nvidia-smi, within a ``with`` block."""

    def __enter__(self) -> Busy:
        self._samples: list[int] = []
        self._process = None
        if torch.cuda.is_available():
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
            self._process = subprocess.Popen([*query, "-i", "0"], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._process is not None:
            self._process.terminate()

    @property
    def share(self) -> float:
        """Mean utilisation."""
        return sum(self._samples) / len(self._samples) / 100 if self._samples else math.nan

    def _read(self) -> None:
        assert self._process is not None
        for line in self._process.stdout or ():
            self._samples.append(int(line))


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    return 0


def free() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[..., None]] = {
    "stream": stream_part, "together": together_part, "large": large_part,
    "dequantise": dequantise_part,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["stream"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-stream"))
    parser.add_argument("--layers", type=int, default=12, help="of the checkpoint; 12 are 14.5 GB, 84 are 107 GB")
    parser.add_argument("--tokens", type=int, default=16384, help="of a window")
    parser.add_argument("--smoke", action="store_true", help="tiny layers, to try it on a CPU")
    parser.add_argument(
        "--large-room", type=int, default=40 << 30, help="bytes of the GPU for weights, part large"
    )
    parser.add_argument("--large-host", type=int, default=0, help="bytes of host memory for weights, part large")
    parser.add_argument("--large-candidates", type=int, default=10, help="sites that may be dropped, part large")
    parser.add_argument("--cold", action="store_true", help="part large with an empty page cache, as root")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    processes.process_device()
    if options.parts == ["dequantise"]:  # it needs no checkpoint
        dequantise_part(None, options)
        return
    if processes.is_main() and not (options.folder / "config.json").exists():
        began = time.perf_counter()
        size = write_checkpoint(options.folder, options.layers, **(SMALL if options.smoke else {}))
        say("written", gb=f"{size / GB:.2f}", s=f"{time.perf_counter() - began:.1f}")
    processes.merge({processes.process_index(): os.getpid()})
    checkpoint = open_checkpoint(str(options.folder))
    for name in options.parts:
        PARTS[name](checkpoint, options)


if __name__ == "__main__":
    main()
