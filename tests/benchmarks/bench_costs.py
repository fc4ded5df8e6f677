"""Measures patterns that dynamic programming makes of layer costs, without a search, against ``fast`` and others.

For every draw of calibration windows: seconds, and what each pattern costs on held-out windows, in LM loss and as
KL divergence of all full's predictions to the pattern's. "Best" is the lowest of everything that was measured.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import torch
from bench_search import run

from indexcache.calibrate.sources import Documents, TextSource
from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.dsa.checkpoint.config import load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.load import load_model
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.model.agreement import selection_overlap
from indexcache.dsa.model.costs import ERROR, FISHER, layer_costs
from indexcache.dsa.model.losses import PatternLosses, Window
from indexcache.evaluate import CALIBRATION
from indexcache.pattern import Pattern, kept_sites
from indexcache.search.strategies.dp import dp_patterns, mean_costs, removal_order
from indexcache.search.strategies.overlap import overlap_pattern


class HeldOut:
    """LM-loss increase and KL of patterns over all full on held-out windows, nats per label, remembered."""

    def __init__(self, losses, windows):
        self._losses, self._windows = losses, windows
        self._full = Pattern.all_full(len(losses.switch.site_layers))
        self.measured = {}

    def __call__(self, patterns):
        missing = [pattern for pattern in dict.fromkeys(patterns) if pattern not in self.measured]
        sums = {pattern: [0.0, 0.0] for pattern in missing}
        for ids in self._windows if missing else ():
            stock, stock_loss = self._predictions(self._full, ids)
            for pattern in missing:
                shared, loss = self._predictions(pattern, ids)
                kl = (stock.exp() * (stock - shared)).sum(-1).double().mean().item()
                sums[pattern][0] += (loss - stock_loss) / len(self._windows)
                sums[pattern][1] += kl / len(self._windows)
        self.measured |= {pattern: tuple(pair) for pattern, pair in sums.items()}
        return [self.measured[pattern] for pattern in patterns]

    def _predictions(self, pattern, ids):
        logits = self._losses.logits(pattern, Window(0, ids[:-1]), len(ids) - 1)[0].float().log_softmax(-1)
        return logits, -logits.gather(1, torch.tensor(ids[1:])[:, None]).double().mean().item()

    def best(self, kept, column):
        return min(pair[column] for pattern, pair in self.measured.items() if pattern.kept == kept)


def packed_from(text, tokenizer, length, windows, heldout):
    request = WindowRequest(length, windows, heldout)
    return pack(Documents(TextSource(text), tokenizer, request.seed), tokenizer, request)


def dp_rows(model, losses, calibration, windows, keeps, blind, seed):
    """By name: seconds and the patterns at ``keeps``; "order" is greedy removal under the same sums."""
    rows = {}
    for surrogate, count in itertools.product((ERROR, FISHER), windows):
        began = time.process_time()
        costs = mean_costs(layer_costs(model, losses.switch, calibration[:count], surrogate, blind, seed).windows)
        patterns = dp_patterns(costs)
        seconds = time.process_time() - began
        rows[f"dp, {surrogate}, {count} windows"] = (seconds, [patterns[kept] for kept in keeps])
        order, sites = removal_order(costs), len(costs)
        rows[f"order, {surrogate}, {count} windows"] = (
            seconds,
            [Pattern.from_full(sites, [0, *order[sites - kept :]]) for kept in keeps],
        )
    return rows


def other_rows(model, checkpoint, losses, calibration, documents, windows, keeps):
    """``fast`` on all windows, the overlap baseline, and uniform interleaving."""
    sites = len(checkpoint.site_layers)
    began = time.process_time()
    fast = run("fast", model, checkpoint, calibration, documents, min(keeps))[0]
    seconds = time.process_time() - began
    began = time.process_time()
    overlap = selection_overlap(losses, calibration[: max(windows)], checkpoint.selection_width)
    return {
        f"fast, {len(calibration)} windows": (seconds, [Pattern(fast["patterns"][kept]) for kept in keeps]),
        f"overlap, {max(windows)} windows": (
            time.process_time() - began,
            [overlap_pattern(overlap, kept) for kept in keeps],
        ),
        "uniform": (0.0, [Pattern.uniform(sites, kept) for kept in keeps]),
    }


def table(draws, heldout, keeps):
    """Geometric means over the draws of what each row's patterns cost over the best, and mean seconds."""
    heads = " | ".join(f"LM +, /best, KL, /best at {kept}" for kept in keeps)
    print(f"\n| patterns of | CPU seconds | {heads} |\n|---|---:|{'---|' * len(keeps)}")
    for name in draws[0]:
        cells = [f"{sum(draw[name][0] for draw in draws) / len(draws):.1f}"]
        for place, kept in enumerate(keeps):
            pairs = heldout([draw[name][1][place] for draw in draws])
            figures = []
            for column in (0, 1):
                values = [pair[column] for pair in pairs]
                best = heldout.best(kept, column)
                ratio = math.fsum(values) / len(values) / best if best > 0 else math.nan
                figures.append(f"{math.fsum(values) / len(values):+.4f} {ratio:.2f}x")
            cells.append("  ".join(figures))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="recipes/tiny")
    parser.add_argument("--text", default="recipes/tiny/calibration.jsonl")
    parser.add_argument("--heldout-text", help="another text for the held-out windows")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--heldout-window", type=int, help="their length, where it is another")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8], help="for layer costs")
    parser.add_argument("--fast-windows", type=int, default=16, help="for ``fast``; 0 leaves the others out")
    parser.add_argument("--heldout", type=int, default=16)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--patterns", nargs="*", default=[], help="also measured, for the best")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint, find_weights(checkpoint), "float32")
    sites = len(checkpoint.site_layers)
    keeps = [kept_sites(sites, keep) for keep in options.keep]
    most = max(*options.windows, options.fast_windows)
    # Draws share no window, and no document with what is held out.
    packed = packed_from(options.text, tokenizer, options.window, options.draws * most, options.heldout)
    other = packed
    if options.heldout_text or options.heldout_window:
        length, text = options.heldout_window or options.window, options.heldout_text or options.text
        other = packed_from(text, tokenizer, length, options.draws * most, options.heldout)
    losses = PatternLosses(model, checkpoint.site_layers)
    heldout, draws = HeldOut(losses, other.heldout.tolist()), []
    for seed in range(options.draws):
        part = slice(seed * most, (seed + 1) * most)
        calibration, documents = packed.calibration[part].tolist(), packed.documents(CALIBRATION)[part]
        rows = dp_rows(model, losses, calibration, options.windows, keeps, checkpoint.selection_width, seed)
        if options.fast_windows:
            rows |= other_rows(model, checkpoint, losses, calibration, documents, options.windows, keeps)
        draws.append(rows)
        print(
            f"draw {seed}", *(f"  {name}: {', '.join(map(str, row[1]))}" for name, row in rows.items()), sep="\n"
        )
    heldout([Pattern(pattern) for pattern in options.patterns])
    heldout([pattern for rows in draws for _, patterns in rows.values() for pattern in patterns])
    table(draws, heldout, keeps)
    if options.json:
        figures = {str(pattern): pair for pattern, pair in heldout.measured.items()}
        options.json.write_text(json.dumps({"heldout": figures}) + "\n")


if __name__ == "__main__":
    main()
