"""Measures the search strategies against Algorithm 1 as written, in the same run: cost, time and plan.

Run by hand or with ``make bench-search``; ``--model`` and ``--text`` take any checkpoint and text.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch

from indexcache.calibrate.sources import Documents, TextSource
from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.dsa.checkpoint.config import load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.load import load_model
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.long.capacity import path_budget
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.paths import PathMemory
from indexcache.dsa.model.tail import Window
from indexcache.evaluate import CALIBRATION
from indexcache.pattern import Pattern, kept_sites
from indexcache.search.losses import Evaluation, Measurements, paired_difference
from indexcache.search.strategies.fast import fast_greedy
from indexcache.search.strategies.greedy import candidate_evaluations, exact_greedy
from indexcache.search.strategies.refine import refine


class Runner:
    """One strategy's run on a fresh evaluator: counts layer-windows and seconds."""

    def __init__(self, model, checkpoint, windows, remember):
        memory = None
        if remember:
            memory = PathMemory(checkpoint.site_layers, len(windows), path_budget(torch.device("cpu")))
        blind = checkpoint.selection_width if remember else 0
        self.losses = PatternLosses(model, checkpoint.site_layers, blind=blind, memory=memory)
        self.windows, self.labels = windows, len(windows[0]) - 1
        self.evaluations, self.began = 0, time.perf_counter()

    def measure(self, patterns, numbers):
        self.evaluations += len(patterns) * len(numbers)
        rows = [self.losses.measure(patterns, [Window(n, self.windows[n])])[0] for n in numbers]
        return [tuple(row[index] / self.labels for row in rows) for index in range(len(patterns))]

    def one_by_one(self, patterns, numbers):
        """As Algorithm 1 does it: one whole forward per candidate and window."""
        return [self.measure([pattern], numbers)[0] for pattern in patterns]

    def follow(self, step):
        if self.losses.memory is not None:
            self.losses.memory.follow(step.pattern)
        print(
            f"    {step.pattern}  {step.evaluation.loss:.5f}  {time.perf_counter() - self.began:.0f} s", flush=True
        )

    def result(self, name, steps):
        self.losses.switch.remove()
        return {
            "strategy": name,
            "layer_windows": self.losses.layer_runs,
            "window_evaluations": self.evaluations,
            "seconds": time.perf_counter() - self.began,
            "patterns": {step.pattern.kept: str(step.pattern) for step in steps},
            "losses": {step.pattern.kept: step.evaluation.window_losses for step in steps},
        }


def run(name, model, checkpoint, windows, documents, kept):
    """One strategy down to ``kept`` full sites."""
    print(f"  {name}", flush=True)
    sites = len(checkpoint.site_layers)
    runner = Runner(model, checkpoint, windows, remember=name != "naive")
    measure = runner.one_by_one if name == "naive" else runner.measure
    measurements = Measurements(measure, len(windows), documents)
    if name == "fast":
        steps = fast_greedy(measurements, sites, kept, on_step=runner.follow)
    else:
        steps = exact_greedy(measurements, sites, kept, on_step=runner.follow)
    return runner.result(name, steps), measurements


def best_of_all(model, checkpoint, windows, documents, kept, start):
    """Fast's pattern refined, against every pattern with ``kept`` full sites."""
    sites = len(checkpoint.site_layers)
    runner = Runner(model, checkpoint, windows, remember=False)
    measurements = Measurements(runner.measure, len(windows), documents)
    swaps = refine(measurements, start, rounds=20)
    refined = swaps[-1].evaluation if swaps else measurements([start])[0]
    everyone = [Pattern.from_full(sites, (0, *rest)) for rest in itertools.combinations(range(1, sites), kept - 1)]
    losses = measurements(everyone)
    runner.losses.switch.remove()
    best = min(losses, key=lambda evaluation: evaluation.loss)
    difference = paired_difference(refined, best)
    print(f"  refined {refined.pattern} in {len(swaps)} swaps; best of {len(everyone)}: {best.pattern}")
    print(f"  difference {difference.delta:+.6f} ± {difference.standard_error:.6f}", flush=True)


def table(results, windows, checkpoint, keeps):
    """Prints what each strategy took against Algorithm 1, and whether it found the first one's patterns.

    Algorithm 1's layer-windows are known without running it; where it runs, the count is checked.
    """
    baseline = results[0]
    evaluations = candidate_evaluations(len(checkpoint.site_layers), keeps[-1])
    literal = evaluations * len(windows) * checkpoint.layers
    assert all(result["layer_windows"] == literal for result in results if result["strategy"] == "naive")
    print(f"\nAlgorithm 1 takes {literal:,} layer-windows; patterns compared with those of {baseline['strategy']}")
    print(
        f"\n| strategy | layer-windows | fewer | seconds | faster | {' | '.join(f'same at {k}' for k in keeps)} |"
    )
    print("|---|---:|---:|---:|---:|" + "---|" * len(keeps))
    for result in results:
        fewer = literal / result["layer_windows"]
        faster = baseline["seconds"] / result["seconds"]
        same = []
        for kept in keeps:
            if result["patterns"][kept] == baseline["patterns"][kept]:
                same.append("yes")
                continue
            ours = Evaluation(Pattern(result["patterns"][kept]), tuple(result["losses"][kept]))
            theirs = Evaluation(Pattern(baseline["patterns"][kept]), tuple(baseline["losses"][kept]))
            difference = paired_difference(ours, theirs)
            same.append(f"no: {difference.delta:+.5f} ± {difference.standard_error:.5f}")
        row = [result["strategy"], f"{result['layer_windows']:,}", f"{fewer:.1f}x", f"{result['seconds']:.0f}"]
        print(f"| {' | '.join([*row, f'{faster:.1f}x', *same])} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="recipes/tiny")
    parser.add_argument("--text", default="recipes/tiny/calibration.jsonl")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument(
        "--keep", type=float, nargs="+", default=[0.5, 0.25], help="compared; the last is searched to"
    )
    parser.add_argument("--strategies", nargs="+", default=["naive", "fast", "exact"])
    parser.add_argument("--all-patterns", action="store_true", help="also refine, against every pattern")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    tokenizer = load_tokenizer(checkpoint)
    request = WindowRequest(options.window, options.windows, 0)
    documents = Documents(TextSource(options.text), tokenizer, request.seed)
    packed = pack(documents, tokenizer, request)
    windows, origins = packed.calibration.tolist(), packed.documents(CALIBRATION)
    model = load_model(checkpoint, find_weights(checkpoint), "float32")
    sites = len(checkpoint.site_layers)
    keeps = [kept_sites(sites, keep) for keep in options.keep]
    print(
        f"{options.model}: {sites} sites to {keeps[-1]}, {options.windows} windows of {options.window}", flush=True
    )
    results = [run(name, model, checkpoint, windows, origins, keeps[-1])[0] for name in options.strategies]
    table(results, windows, checkpoint, keeps)
    if options.all_patterns:
        result = next(result for result in results if result["strategy"] == "fast")
        best_of_all(model, checkpoint, windows, origins, keeps[-1], Pattern(result["patterns"][keeps[-1]]))
    if options.json:
        options.json.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
