"""Kept indexers distilled against the attention of all layers that they serve: held-out losses before and after.

    make bench-distil                       the embedded model, windows of 256 tokens, all parts
    make bench-distil ARGS="--window 1024 --device cuda --text train.txt.xz --heldout-text val.txt.xz"

Each part trains the indexers that a pattern keeps and measures the loss increase over the untouched model, all
full, before and after, paired. The control trains each on the attention of its own layer alone. Weights are
rounded to bf16 before they are measured, as they would be stored. The joint parts search twice on the first
windows: with students of every candidate, and without; what the first gives is distilled.
"""

import argparse
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import bench_results
import torch
from bench_results import Book, Deadline, Row, run_parts
from bench_setting import ROOT, demo_text, read_texts, settings_of

from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.commands.search_students import STEPS
from indexcache.dsa.checkpoint.config import load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.distil.candidates import StudentEvaluator, Students, single_sites
from indexcache.dsa.distil.losses import DistilledLosses
from indexcache.dsa.distil.segments import Segment
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
        groups = {CALIBRATION: [Window((CALIBRATION, place), ids) for place, ids in enumerate(windows)]}
        settings = Settings(STEPS, options.rows, options.windows_a_step, options.rate, options.seed)
        kept: dict[str, Any] = {"blind": self._width, "memory": PathMemory(sites, len(windows), 4 << 30)}
        if joint:
            students = Students(
                model, collect(model, sites, windows, single_sites(len(sites)), settings), settings
            )
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
        result, (free, cost) = self._result(f"joint {kept}", pattern), self._free(free_kept)
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
    parser.add_argument("--rate", type=float, help="learning rate; probed by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--searched", default="FSFSSSSFSFSSSSSS", help="the searched pattern; the demo's by default"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    bench_results.add_options(parser, PARTS, "outputs/bench-distil.jsonl")
    options = parser.parse_args()
    book, deadline = Book(options.out, settings_of(options)), Deadline(options.seconds)
    bench = DistilBench(options, book)
    run_parts({name: getattr(bench, f"{name}_part") for name in PARTS}, options.parts, book, deadline)


if __name__ == "__main__":
    main()
