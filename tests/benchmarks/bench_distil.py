"""Kept indexers distilled against the attention of all layers that they serve: held-out losses before and after.

    make bench-distil                       the embedded model, windows of 256 tokens, all parts
    make bench-distil ARGS="--window 1024 --device cuda --text train.txt.xz --heldout-text val.txt.xz"
    make bench-distil ARGS="--parts long stream47 --device cuda"    sizes of a 30B model, on one GPU of 80 GB

Each part trains the indexers that a pattern keeps and measures the loss increase over the untouched model, all
full, before and after, paired. The control trains each on the attention of its own layer alone. Weights are
rounded to bf16 before they are measured, as they would be stored. The joint parts search twice on the first
windows: with students of every candidate, and without; what the first gives is distilled, for four times as many
steps, as uniform 2/16 is.

Parts that need nothing of each other can run as processes side by side, each with an ``--out`` of its own: joint
and joint_three belong together, uniform and all_full too. ``long`` is one indexer that serves four layers, at
32,768 tokens; ``stream47`` collects for and trains a 12/47 pattern of random weights that stream (57 GB on disk).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import bench_results
import torch
import transformers
from bench_results import Book, Deadline, Row, run_parts
from bench_setting import ROOT, demo_text, read_texts, settings_of
from bench_stream import Bench, free, layouts, now
from random_checkpoint import CONFIG, SMALL, write_checkpoint

from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.commands.search_students import STEPS
from indexcache.dsa.checkpoint.config import load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.chunks import ChunkBudget
from indexcache.dsa.distil.candidates import StudentEvaluator, Students, single_sites
from indexcache.dsa.distil.collect import CHUNKS
from indexcache.dsa.distil.losses import DistilledLosses
from indexcache.dsa.distil.segments import Segment
from indexcache.dsa.distil.students import IndexerCode, IndexerInputs, Student
from indexcache.dsa.distil.targets import AttentionCall, mean_attention
from indexcache.dsa.distil.train import Settings, Trained, collect, put, train
from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream.load import load_measured
from indexcache.dsa.stream.room import Room
from indexcache.errors import DatasetError
from indexcache.evaluate import CALIBRATION, HELD_OUT
from indexcache.pattern import Pattern
from indexcache.search.goal import Goal, Method
from indexcache.search.losses import Difference, mean_difference
from indexcache.search.search import Problem, SearchProgress, choose

PARTS = ("uniform", "searched", "control", "all_full", "two_sixteenths", "joint", "joint_three")
LARGE = ("long", "stream47")
"""Parts at the sizes of a 30B model."""
_SERVED, _ROWS = 4, 1024


class DistilBench:
    """A loaded model with its windows; each part is a method."""

    def __init__(self, options: argparse.Namespace, book: Book) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        self._options, self._book = options, book
        checkpoint = open_checkpoint(options.model)
        self._model = load_measured(checkpoint, find_weights(checkpoint), "float32", Room()).to(options.device)
        self._site_layers = checkpoint.site_layers
        self._losses = PatternLosses(self._model, self._site_layers)
        self._tokenizer = load_tokenizer(checkpoint)
        self._sites, self._width = len(self._site_layers), checkpoint.selection_width
        self._full = Pattern.all_full(self._sites)

    @cached_property
    def _windows(self) -> tuple[list[list[int]], list[list[int]], list[int]]:
        """Windows to train on, held-out ones, and the documents of these."""
        options = self._options
        texts = read_texts(options.text or [demo_text()])
        try:
            if options.heldout_text:
                made = pack(texts, self._tokenizer, WindowRequest(options.window, options.windows, 0))
                other = pack(
                    read_texts(options.heldout_text),
                    self._tokenizer,
                    WindowRequest(options.window, options.heldout, 0),
                )
                return made.calibration.tolist(), other.calibration.tolist(), list(other.documents(CALIBRATION))
            made = pack(texts, self._tokenizer, WindowRequest(options.window, options.windows, options.heldout))
        except DatasetError as error:
            raise SystemExit(f"{error}\ngive more text, or ask for fewer windows") from error
        return made.calibration.tolist(), made.group(HELD_OUT).tolist(), list(made.documents(HELD_OUT))

    def _label_losses(self, pattern: Pattern) -> list[float]:
        """Of each held-out window, a label."""
        windows = [Window(number, ids) for number, ids in enumerate(self._windows[1])]
        losses = self._losses.measure([pattern], windows)
        return [loss / (self._options.window - 1) for (loss,) in losses]

    @cached_property
    def _original(self) -> list[float]:
        return self._label_losses(self._full)

    def _increase(self, pattern: Pattern) -> Difference:
        pairs = zip(self._label_losses(pattern), self._original, strict=True)
        return mean_difference([after - before for after, before in pairs], self._windows[2])

    def _distilled(self, pattern: Pattern, segments: Sequence[Segment], steps: int) -> dict[str, Any]:
        """Increases before and after, under ``pattern`` and all full, with an indexer trained for each segment."""
        options = self._options
        before = self._increase(pattern)
        settings = Settings(steps, options.rows, options.windows_a_step, options.rate, options.seed)
        model = self._model
        began = time.perf_counter()
        stored = collect(model, self._site_layers, self._windows[0], segments, settings)
        collected = time.perf_counter()
        trained = {segment: train(model, stored, segment, settings) for segment in segments}
        ended = time.perf_counter()
        returns = [put(model, segment.site, _rounded(result)) for segment, result in trained.items()]
        after, all_full = self._increase(pattern), self._increase(self._full)
        for give_back in returns:
            give_back()
        return {
            "before": [before.delta, before.standard_error],
            "after": [after.delta, after.standard_error],
            "all_full": [all_full.delta, all_full.standard_error],
            "collect_seconds": round(collected - began, 1),
            "train_seconds": round(ended - collected, 1),
            "stored_bytes": stored.bytes,
            "rates": [result.learning_rate for result in trained.values()],
            "curves": [result.curve for result in trained.values()],
        }

    def _result(self, name: str, pattern: Pattern, own_layer: bool = False, times: int = 1) -> dict[str, Any]:
        segments = [Segment(*ends) for ends in pattern.segments]
        if own_layer:
            segments = [Segment(segment.site, segment.site + 1) for segment in segments]
        steps = times * self._options.steps
        result: dict[str, Any] = self._book.result(name, lambda: self._distilled(pattern, segments, steps))
        return result

    def _searched(self, joint: bool) -> dict[str, str]:
        """Patterns by how many sites they keep, down to 3/16, of a search with students or without."""
        name = "search with students" if joint else "search without training"
        patterns: dict[str, str] = self._book.result(name, lambda: self._search(joint))
        return patterns

    def _search(self, joint: bool) -> dict[str, str]:
        options, model, sites = self._options, self._model, self._site_layers
        windows = self._windows[0][: options.search_windows]
        # As in the program: students learn from windows that judge nothing, where there are so many.
        lesson = windows if options.learn_alike else self._windows[0][options.search_windows :] or windows
        groups = {CALIBRATION: [Window((CALIBRATION, place), ids) for place, ids in enumerate(windows)]}
        settings = Settings(
            options.student_steps, options.rows, options.windows_a_step, options.rate, options.seed
        )
        kept: dict[str, Any] = {"blind": self._width, "memory": PathMemory(sites, len(windows), 4 << 30)}
        if joint:
            students = Students(model, collect(model, sites, lesson, single_sites(len(sites)), settings), settings)
            losses: PatternLosses = DistilledLosses(model, sites, students.parameters, **kept)
            evaluator: Evaluator = StudentEvaluator(students, losses, groups)
        else:
            losses = PatternLosses(model, sites, **kept)
            evaluator = Evaluator(losses, groups)
        problem = Problem(
            evaluator.sweep,
            {CALIBRATION: [len(ids) - 1 for ids in windows]},
            {CALIBRATION: range(len(windows))},
            self._sites,
            Goal(keep=max(1, 3 * self._sites // 16) / self._sites),
            Method(strategy="distilled" if joint else "fast"),
        )
        findings = choose(problem, SearchProgress(step=lambda step: evaluator.follow(step.pattern)))
        losses.switch.remove()
        return {str(step.pattern.kept): str(step.pattern) for step in findings.steps}

    def _free(self, kept: int) -> tuple[Pattern, list[Any]]:
        """A training-free pattern and its increase."""
        pattern = Pattern(self._searched(joint=False)[str(kept)])
        measured = self._book.result(f"training-free {kept}", lambda: list(self._figures(pattern)))
        return pattern, measured

    def _figures(self, pattern: Pattern) -> tuple[float, float | None]:
        increase = self._increase(pattern)
        return increase.delta, increase.standard_error

    def _joint_row(self, kept: int, free_kept: int, share: float) -> Row:
        """A joint pattern, distilled; at most ``share`` of what a training-free one of ``free_kept`` costs."""
        pattern = Pattern(self._searched(joint=True)[str(kept)])
        result, (free, cost) = self._result(f"joint {kept}", pattern, times=4), self._free(free_kept)
        after = result["after"]
        return Row.judged(
            f"joint {kept}/{self._sites} `{pattern}`",
            f"at most {share:g} of training-free {free_kept}/{self._sites}",
            f"{_figure(*result['before'])} -> {_figure(*after)}; training-free `{free}` {_figure(*cost)}",
            after[0] <= share * cost[0],
        )

    def joint_part(self) -> list[Row]:
        kept = max(1, self._sites // 4)
        return [self._joint_row(kept, kept, 0.5)]

    def joint_three_part(self) -> list[Row]:
        return [self._joint_row(max(1, 3 * self._sites // 16), max(1, self._sites // 2), 1.0)]

    def _uniform(self, kept: int) -> Pattern:
        return Pattern.uniform(self._sites, kept)

    def uniform_part(self) -> list[Row]:
        pattern = self._uniform(max(1, self._sites // 4))
        return [_share_row("uniform 4/16", pattern, self._result("uniform", pattern), 1 / 12, below=True)]

    def searched_part(self) -> list[Row]:
        pattern = Pattern.parse(self._options.searched, self._sites)
        return [_share_row("searched 4/16", pattern, self._result("searched", pattern), 2 / 3, below=True)]

    def control_part(self) -> list[Row]:
        pattern = self._uniform(max(1, self._sites // 4))
        result = self._result("control", pattern, own_layer=True)
        return [_share_row("own layer's attention only, uniform 4/16", pattern, result, 4 / 5, below=False)]

    def all_full_part(self) -> list[Row]:
        result = self._result("uniform", self._uniform(max(1, self._sites // 4)))
        mean, error = result["all_full"]
        return [
            Row.judged(
                "all full with the indexers of uniform 4/16",
                "within .003",
                _figure(mean, error),
                abs(mean) <= 0.003,
            )
        ]

    def two_sixteenths_part(self) -> list[Row]:
        pattern = self._uniform(max(1, self._sites // 8))
        result = self._result("two sixteenths", pattern, times=4)
        return [_share_row("uniform 2/16, 4 x the steps", pattern, result, 1 / 18, below=True)]


class LargeBench:
    """Distilling at the sizes of a 30B model; ``--smoke`` tries it in small."""

    def __init__(self, options: argparse.Namespace, book: Book) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        self._options, self._book, self._device = options, book, torch.device(options.device)
        self._tokens = options.long_tokens

    def long_part(self) -> list[Row]:
        result = self._book.result("long", self._one_group)
        measured = (
            f"{result['bytes'] / 1e9:.2f} GB above {result['inputs'] / 1e9:.2f} GB of inputs; attention "
            f"{result['attention_seconds']:.3f} s, step {result['step_seconds']:.3f} s"
        )
        what = f"one indexer that serves {_SERVED} layers, {self._tokens:,} tokens, {result['rows']} rows"
        met = result["bytes"] <= 2.5e9 if self._device.type == "cuda" else None
        return [Row.judged(what, "at most 2.5 GB above inputs", measured, met)]

    @torch.no_grad()
    def _one_group(self) -> dict[str, Any]:
        """Peak memory and seconds of attention averaged over the layers served, and of a training step."""
        config = transformers.AutoConfig.from_pretrained(CONFIG)
        if self._options.smoke:
            config.update(SMALL | {"head_dim": SMALL["qk_rope_head_dim"]})
        config.update({"num_hidden_layers": 1, "first_k_dense_replace": 1, "vocab_size": 32})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(self._device).eval()
        layer = model.model.layers[0].self_attn
        tokens, heads = self._tokens, config.num_attention_heads
        width = config.qk_nope_head_dim + config.qk_rope_head_dim

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=self._device, dtype=torch.bfloat16)

        rows = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:_ROWS].sort().values
        hidden, latent = draw(tokens, config.hidden_size), draw(len(rows), config.q_lora_rank)
        queries = [draw(1, heads, tokens, width) for _ in range(_SERVED)]
        keys = [draw(1, heads, tokens, width) for _ in range(_SERVED)]
        places = torch.arange(tokens, device=self._device)[None]
        positions = tuple(model.model.rotary_emb(hidden[None], places))
        inputs = IndexerInputs(hidden, rows, latent, positions, places)
        held = self._reset_peak()
        for _ in range(2):  # the first one also warms up
            budget, began = ChunkBudget(*CHUNKS), now()
            target = torch.zeros(len(rows), tokens, device=self._device)
            for query, key in zip(queries, keys, strict=True):
                target += mean_attention(AttentionCall(layer, query, key, width**-0.5, None), rows, budget)
            target /= _SERVED
            attended = now()
            indexer = next(iter(find_indexers(model, 1)[1].values()))
            student = Student(IndexerCode(indexer), dict(indexer.named_parameters()), self._device, budget)
            optimizer = torch.optim.AdamW(list(student.parameters.values()), lr=1e-3)
            with torch.enable_grad():
                student.learn(inputs, target, 1 / len(rows))
            optimizer.step()
            ended = now()
        return {
            "rows": len(rows),
            "inputs": held,
            "bytes": self._peak() - held,
            "attention_seconds": round(attended - began, 4),
            "step_seconds": round(ended - attended, 4),
        }

    def _reset_peak(self) -> int:
        """Bytes that are held now, from which a peak is measured; 0 on a CPU."""
        if self._device.type != "cuda":
            return 0
        free()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0

    def stream47_part(self) -> list[Row]:
        result = self._book.result("stream47", self._streamed)
        measured = (
            f"all-full prefill {result['prefill']:.2f} s a window, collecting {result['collect']:.2f} s, "
            f"training all indexers once {result['train']:.2f} s; peak {result['peak'] / 1e9:.1f} GB"
        )
        what = f"distilled {result['kept']}/{result['sites']}, layers in host memory, {self._tokens:,} tokens"
        return [Row.judged(what, "seconds a window beside its prefill", measured, None)]

    def _streamed(self) -> dict[str, Any]:
        """Seconds a window: the model all full, collecting for all kept indexers, and their training on it."""
        options, folder = self._options, Path(self._options.folder)
        if not (folder / "config.json").exists():
            write_checkpoint(folder, options.layers, **(SMALL if options.smoke else {}))
        checkpoint = open_checkpoint(str(folder))
        sites, count = len(checkpoint.site_layers), options.long_windows
        pattern = Pattern.uniform(sites, max(1, -(-sites // 4)))
        segments = [Segment(*ends) for ends in pattern.serving]
        bench = Bench(checkpoint, layouts(checkpoint)[2], self._tokens, count)
        self._reset_peak()
        prefill = bench.measure([bench.full], bench.windows)["seconds"]
        bench.losses.switch.remove()
        windows = [list(window.token_ids) for window in bench.windows]
        settings = Settings(1, _ROWS, count, 5e-3)
        began = now()
        stored = collect(bench.model, checkpoint.site_layers, windows, segments, settings)
        collected = now()
        for segment in segments:
            train(bench.model, stored, segment, settings)
        ended = now()
        return {
            "sites": sites,
            "kept": pattern.kept,
            "prefill": prefill / count,
            "collect": (collected - began) / count,
            "train": (ended - collected) / count,
            "stored_bytes": stored.bytes,
            "peak": self._peak(),
        }


def _rounded(result: Trained) -> dict[str, torch.Tensor]:
    return {name: value.bfloat16().float() for name, value in result.parameters.items()}


def _figure(mean: float, error: float | None) -> str:
    return f"{mean:+.4f}" + ("" if error is None else f" ± {error:.4f}")


def _share_row(what: str, pattern: Pattern, result: dict[str, Any], share: float, below: bool) -> Row:
    before, after = result["before"], result["after"]
    kept = after[0] / before[0]
    measured = (
        f"{_figure(*before)} -> {_figure(*after)}, {kept:.3f} of it; "
        f"{result['collect_seconds']:.0f} s and {result['train_seconds']:.0f} s"
    )
    target = f"{'at most' if below else 'at least'} {share:.3f} of the increase stays"
    return Row.judged(f"{what} `{pattern}`", target, measured, kept <= share if below else kept >= share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "recipes/tiny"), help="folder of a checkpoint")
    parser.add_argument("--text", nargs="+", type=Path, default=[], help="documents; the demo's by default")
    parser.add_argument(
        "--heldout-text",
        nargs="+",
        type=Path,
        default=[],
        help="documents to measure on; apart in --text by default",
    )
    parser.add_argument("--window", type=int, default=256, help="tokens; 256 by default")
    parser.add_argument("--windows", type=int, default=64, help="to train on; 64 by default")
    parser.add_argument("--heldout", type=int, default=96, help="windows to measure on; 96 by default")
    parser.add_argument("--steps", type=int, default=200, help="of each indexer; 200 by default")
    parser.add_argument("--rows", type=int, default=128, help="queries of a window; 128 by default")
    parser.add_argument("--windows-a-step", type=int, default=4, help="4 by default")
    parser.add_argument(
        "--search-windows",
        type=int,
        default=16,
        help="of a search; 16 by default",
    )
    parser.add_argument("--learn-alike", action="store_true", help="students learn from what a search judges on")
    parser.add_argument("--student-steps", type=int, default=STEPS, help="of a search's; the program's by default")
    parser.add_argument("--rate", type=float, help="learning rate; probed by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--searched", default="FSFSSSSFSFSSSSSS", help="the searched pattern; the demo's by default"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    large = parser.add_argument_group("parts long and stream47")
    large.add_argument("--long-tokens", type=int, default=32768, help="of a window; 32768 by default")
    large.add_argument("--long-windows", type=int, default=2, help="of stream47; 2 by default")
    large.add_argument("--layers", type=int, default=47, help="of stream47's checkpoint; 47 by default")
    large.add_argument("--folder", default="outputs/bench-distil-30b", help="where it is written")
    large.add_argument("--smoke", action="store_true", help="tiny sizes, to try them on a CPU")
    bench_results.add_options(parser, (*PARTS, *LARGE), "outputs/bench-distil.jsonl")
    parser.set_defaults(parts=list(PARTS))
    options = parser.parse_args()
    book, deadline = Book(options.out, settings_of(options)), Deadline(options.seconds)
    # What a process needs is loaded with its first part.
    bench, of_large = cache(partial(DistilBench, options, book)), cache(partial(LargeBench, options, book))
    parts = {name: partial(_run, bench, name) for name in PARTS}
    parts |= {name: partial(_run, of_large, name) for name in LARGE}
    run_parts(parts, options.parts, book, deadline)


def _run(bench: Callable[[], DistilBench | LargeBench], name: str) -> list[Row]:
    rows: list[Row] = getattr(bench(), f"{name}_part")()
    return rows


if __name__ == "__main__":
    main()
