"""Measures what a plan is worth: against all patterns, on probes, and whether the figures beside it are right.

It shows whether a refined plan is the best there is, what plans do to retrieval that LM loss does not see, that KL
and key loss are exact, and that intervals hold what they promise. Losses are measured once, in batches. On two CPU
cores all of it takes hours: ``--parts`` and ``--seconds`` take some of it, and ``--out`` keeps what is measured.
Run by hand or with ``make bench-quality``.
"""

import argparse
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import bench_setting
import numpy as np
import torch
from batched_losses import difference_from_package
from bench_results import Book, Row
from bench_search import as_time_allows, listed, rank_correlation, shown
from bench_setting import HELD_OUT_PART, Outcome, Setting, Texts

from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.objectives import key_weights, label_losses, short_pieces, window_loss
from indexcache.dsa.model.tail import Window
from indexcache.pattern import Pattern
from indexcache.recipes.schema import read_recipe
from indexcache.search.gate import Gate, MeasuredIncrease, measured_increase
from indexcache.search.intervals import CONFIDENCE
from indexcache.search.losses import Difference

PARTS = ("arithmetic", "probes", "patterns", "demo", "refusal", "ranking", "statistics")
"""In the order in which they are measured."""
_MOST_PATTERNS = 2000
_BAR, _PROBE_BAR = 0.02, 0.2
"""The docs' examples of ``--max-delta`` and ``--max-probe-delta``: nats a token, and an answer token."""


class QualityBench:
    """The parts of the benchmark."""

    def __init__(self, setting: Setting, book: Book) -> None:
        self.setting = setting
        self.book = book

    def outcome(self, name: str, part: str, windows: int | None = None, **changes: Any) -> Outcome:
        """A search on windows of a calibration set, all by default, the default settings with ``changes``."""
        numbers = self.setting.text.parts[part][:windows]
        return self._outcome(f"{name}, {len(numbers)} windows, {part}", self.setting.text, numbers, part, changes)

    def _outcome(
        self, name: str, texts: Texts, numbers: Sequence[int], part: str, changes: dict[str, Any]
    ) -> Outcome:
        method = self.setting.method(**changes)
        result = self.book.result(name, lambda: vars(self.setting.search(method, texts, numbers, part)))
        return Outcome(**{**result, "order": tuple(result["order"])})

    def increase(self, pattern: Pattern, over: Pattern | None = None, figure: str = "loss") -> Difference:
        """On the held-out windows."""
        return self.setting.text.increase(pattern, over or self.setting.full, HELD_OUT_PART, figure)

    # --- Are KL and key loss right?

    def arithmetic_part(self) -> list[Row]:
        """KL and key loss in fp32 against float64 on whole logits, on held-out windows of the model."""
        setting = self.setting
        windows = setting.text.parts[HELD_OUT_PART][:4]
        middle = setting.full.share(setting.sites // 2)
        patterns = (middle, setting.uniform, Pattern.from_full(setting.sites, [0]))
        errors = self.book.result("arithmetic", lambda: arithmetic_errors(setting, patterns, windows))
        target = "1e-6 relative"
        rows = [
            Row.judged(
                f"{name} against float64 on whole logits", target, f"{errors[name]:.1e}", errors[name] <= 1e-6
            )
            for name in ("KL", "key loss")
        ]
        whole = ", ".join(f"{name} {errors[f'{name}, forwards apart']:.1e}" for name in ("KL", "key loss"))
        rows.append(Row.judged("the same, logits of another forward", "", whole, None))
        width, losses = setting.checkpoint.selection_width, setting.text.losses
        apart = self.book.result(
            "batched against the program",
            lambda: difference_from_package(setting.layers, losses, patterns, windows, width)._asdict(),
        )
        text = ", ".join(f"{name} {apart[name]:.1e}" for name in ("loss", "divergence", "key_loss"))
        rows.append(Row.judged("this benchmark's batches against the program, a label", "", text, None))
        return rows

    # --- Is the plan the best there is?

    def patterns_part(self) -> list[Row]:
        """Refined plans against every pattern of as many full sites."""
        setting = self.setting
        count = math.comb(setting.sites - 1, setting.kept - 1)
        if count > _MOST_PATTERNS:
            return [Row.judged("refined plan against all patterns", "", f"{count} are too many", None)]
        best = self.best_of_all()
        increase = self.increase(best)
        differences = as_time_allows(
            lambda part=part: self.increase(self.outcome("refined", part, refine_rounds=20).plan, best)
            for part in setting.sets
        )
        measured = f"{'; '.join(map(shown, differences))} over {best}, which is {shown(increase)}"
        met = all(difference.delta <= (difference.standard_error or 0) for difference in differences)
        what = f"refined plan against the best of all {count} patterns, held out"
        return [Row.judged(what, "within a standard error", measured, met)]

    def demo_part(self) -> list[Row]:
        """The plan of the demo's own windows against the best found by any means."""
        setting, rounds = self.setting, read_recipe("tiny").refine_rounds
        best, changes = self.increase(self.best_of_all()).delta, {"refine_rounds": rounds}
        demo = self._outcome("demo", setting.demo, setting.demo.parts["demo"], "", changes).plan
        ratio = self.increase(demo).delta / best
        measured = f"{ratio:.2f}x of {best:+.5f}: {demo} {shown(self.increase(demo))}"
        return [Row.judged("the demo's plan over the best of all patterns", "<= 1.2x", measured, ratio <= 1.2)]

    def everyone(self) -> list[Pattern]:
        """Every pattern at the budget, or the plan's neighbours where they are too many."""
        setting = self.setting
        if math.comb(setting.sites - 1, setting.kept - 1) <= _MOST_PATTERNS:
            rests = itertools.combinations(range(1, setting.sites), setting.kept - 1)
            return [Pattern.from_full(setting.sites, (0, *rest)) for rest in rests]
        plan = self.outcome("default", "set 0").plan
        swaps = itertools.product(plan.full[1:], set(range(setting.sites)) - set(plan.full))
        near = [
            Pattern.from_full(setting.sites, {*plan.full, restored} - {removed}) for removed, restored in swaps
        ]
        return random.Random(0).sample(near, min(len(near), 200))

    def best_of_all(self) -> Pattern:
        """The pattern with the lowest loss on the held-out windows."""
        everyone = self.everyone()

        def measure() -> str:
            self.setting.text.losses(everyone, self.setting.text.parts[HELD_OUT_PART])
            return str(min(everyone, key=lambda pattern: self.increase(pattern).delta))

        return Pattern(self.book.result(f"best of {len(everyone)} patterns", measure))

    # --- What does it do to retrieval?

    def damage(self, pattern: Pattern, over: Pattern | None = None, probes: Texts | None = None) -> Difference:
        """A scored answer token, on ``probes``, by default all that are held out."""
        probes = probes or self.setting.probes
        assert probes is not None
        return probes.increase(pattern, over or self.setting.full, HELD_OUT_PART)

    def probes_part(self) -> list[Row]:
        """Searched plans against uniform on probes."""
        setting = self.setting
        if setting.probes is None:
            return [Row.judged("probes", "", "windows are too short, see --probe-window", None)]
        full = setting.probes.evaluation(setting.full, HELD_OUT_PART)
        uniform = self.damage(setting.uniform)
        rows = [
            Row.judged("probes under all full", "", f"answers correct {full.mean('correct'):.0%}", None),
            Row.judged(
                "probes under uniform", "", f"damage {shown(uniform)}, {self.correct(setting.uniform)}", None
            ),
        ]
        for objective in ("expected-loss", "mix"):
            if objective == "mix" and setting.mixed_probes is None:
                continue
            plans = [self.outcome(f"fast by {objective}", part, objective=objective).plan for part in setting.sets]
            damage = [self.damage(plan).delta for plan in plans]
            ratio = statistics.mean(damage) / uniform.delta
            measured = f"{ratio:.2f} of uniform's: {listed(damage)}; {'; '.join(map(self.correct, plans))}"
            what = f"probes' damage, searched by {objective}, against uniform"
            rows.append(Row.judged(what, "<= 1/5", measured, ratio <= 0.2))
        return rows

    def correct(self, pattern: Pattern, probes: Texts | None = None) -> str:
        probes = probes or self.setting.probes
        assert probes is not None
        return f"answers correct {probes.evaluation(pattern, HELD_OUT_PART).mean('correct') or 0.0:.0%}"

    def refusal_part(self) -> list[Row]:
        """Two patterns of as many full sites that LM loss lets pass: probes refuse one, and let the other pass.

        A quarter of the probes chose them, and they are measured on the others, which owe nothing to the choice.
        The searched plan of as many full sites stands beside them.
        """
        setting = self.setting
        if setting.probes is None:
            return []
        what = f"a pattern within --max-delta {_BAR:g} that --max-probe-delta {_PROBE_BAR:g} refuses, another not"
        minded, spared = self.minded_and_spared()
        if minded == setting.full:
            return [Row.judged(what, "one shown", "probes mind no removal within", False)]
        plan = setting.full
        for site in self.outcome("default", "set 0").order[: setting.sites - minded.kept]:
            plan = plan.share(site)
        probes = self.split_probes[1]
        probes.losses([setting.full, minded, spared, plan], probes.parts[HELD_OUT_PART])
        low, high = self.increase_within(minded, probes).low, self.increase_within(spared, probes).high
        met = low is not None and high is not None and low > _PROBE_BAR >= high
        met = met and self.passes(spared)
        names = {"refused": minded, "passes": spared, "the plan": plan}
        measured = "; ".join(f"{name} {self.described(pattern, probes)}" for name, pattern in names.items())
        return [Row.judged(what, "one shown", measured, met)]

    @cached_property
    def split_probes(self) -> tuple[Texts, Texts]:
        """A quarter of the held-out probes, and the others."""
        probes = self.setting.probes
        assert probes is not None
        numbers = probes.parts[HELD_OUT_PART]
        count = len(numbers) // 4
        first, others = ({HELD_OUT_PART: part} for part in (numbers[:count], numbers[count:]))
        return replace(probes, parts=first), replace(probes, parts=others)

    def minded_and_spared(self) -> tuple[Pattern, Pattern]:
        """Of the removals within the bar, those with the most damage to probes for their LM loss, and the least.

        Each is measured alone. Those with the most are made one after another, half of all at most; one that
        brings the pattern above the bar is left out. Of those with the least as many are made.
        """
        full, measured = self.setting.full, self.book.result("single removals", self.single_removals)
        ends, damage = ({int(site): value for site, value in figures.items()} for figures in measured)

        def worth(site: int) -> float:
            return damage[site] / max(ends[site], _BAR / 100)

        minded = full
        for site in sorted((site for site in damage if damage[site] > 0), key=worth, reverse=True):
            if len(full) - minded.kept < len(damage) // 2 and self.passes(minded.share(site)):
                minded = minded.share(site)
        others = sorted((site for site in damage if minded.is_full(site)), key=lambda site: damage[site])
        spared = full
        for site in others[: len(full) - minded.kept]:
            spared = spared.share(site)
        return minded, spared

    def single_removals(self) -> tuple[dict[int, float], dict[int, float]]:
        """Of each site whose removal alone is within the bar: the upper end of LM loss, and damage to probes."""
        full, text, probes = self.setting.full, self.setting.text, self.split_probes[0]
        removals = {site: full.share(site) for site in range(1, self.setting.sites)}
        text.losses([full, *removals.values()], text.parts[HELD_OUT_PART])
        within = {site: pattern for site, pattern in removals.items() if self.passes(pattern)}
        probes.losses([full, *within.values()], probes.parts[HELD_OUT_PART])
        ends = {site: self.increase_within(pattern).high or 0.0 for site, pattern in within.items()}
        return ends, {site: self.damage(pattern, None, probes).delta for site, pattern in within.items()}

    def passes(self, pattern: Pattern) -> bool:
        """Whether ``eval --max-delta`` would let the pattern pass on the held-out windows."""
        return bool(Gate().passes(self.increase_within(pattern), _BAR))

    def increase_within(self, pattern: Pattern, texts: Texts | None = None) -> MeasuredIncrease:
        """The loss increase with its interval on what is held out of ``texts``, by default of the text."""
        texts = texts or self.setting.text
        pair = (texts.evaluation(one, HELD_OUT_PART) for one in (pattern, self.setting.full))
        return measured_increase(*pair, CONFIDENCE)

    def described(self, pattern: Pattern, probes: Texts) -> str:
        """The pattern's losses on held-out windows and ``probes``, with their intervals."""
        text, damage = (self.increase_within(pattern, texts) for texts in (self.setting.text, probes))
        text_ends, probe_ends = (f"({one.low or 0:+.4f} to {one.high or 0:+.4f})" for one in (text, damage))
        losses = f"LM loss {text.delta:+.4f} {text_ends}, probes {damage.delta:+.3f} {probe_ends}"
        return f"{pattern}: {losses}, {self.correct(pattern, probes)}"

    def ranking_part(self) -> list[Row]:
        """How far LM loss and probes rank random patterns alike."""
        sites, kept, draw = self.setting.sites, self.setting.kept, random.Random(0)
        if self.setting.probes is None:
            return []
        some = [Pattern.from_full(sites, [0, *draw.sample(range(1, sites), kept - 1)]) for _ in range(30)]

        def measure() -> float:
            for texts in (self.setting.probes, self.setting.text):
                assert texts is not None
                texts.losses(some, texts.parts[HELD_OUT_PART])
            losses, damages = ([of(pattern).delta for pattern in some] for of in (self.increase, self.damage))
            return rank_correlation(places(losses), places(damages))

        text = f"{self.book.result('ranking', measure):.2f} over {len(some)} random patterns"
        return [Row.judged("rank correlation of LM loss and probes' damage", "", text, None)]

    # --- Do intervals hold what they promise?

    def statistics_part(self) -> list[Row]:
        """Coverage of intervals, and of decided steps, on simulated documents with known means."""
        figures, rows = self.book.result("statistics", simulated), []
        for kind, (low, high) in figures["coverage"].items():
            what = f"coverage of 95 % intervals, {kind} documents"
            met = low >= 93 and high <= 97
            rows.append(Row.judged(what, "93 to 97 %", f"{low:.1f} to {high:.1f} %", met))
        for kind, most in figures["wrong"].items():
            what = f"steps wrongly called decided, {kind} documents"
            rows.append(Row.judged(what, "<= 5 %", f"at most {most:.1f} %", most <= 5))
        return rows


def places(values: Sequence[float]) -> list[float]:
    """The place of each value in their order."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    return [float(order.index(index)) for index in range(len(values))]


def simulated() -> dict[str, Any]:
    """By the simulations of ``bench_intervals.py``: what ships, in %."""
    import bench_intervals as intervals

    draw = np.random.default_rng(0)

    def coverage(sizes: Sequence[int], kind: str) -> float:
        return float(next(iter(intervals.covered(sizes, kind, 1.0, draw))).split()[0])

    def wrong(kind: str) -> float:
        cases = itertools.product((2, 10, 60), (3, 8, 32), ((0, "alike"), (0, "unlike"), (10, "alike")))
        steps = (intervals.step(kind, count, documents, *case, draw) for count, documents, case in cases)
        return max(float(next(iter(step)).split()[2]) for step in steps)

    many = [sizes for sizes in intervals.EQUAL if len(sizes) >= 16]
    cases = {
        "normal": [(sizes, "normal") for sizes in (*intervals.EQUAL, *intervals.UNEQUAL)],
        "heavy-tailed": [(sizes, "t3") for sizes in intervals.EQUAL],
        "16 and more exponential": [(sizes, "exponential") for sizes in many],
        "2 to 8 exponential": [(sizes, "exponential") for sizes in intervals.EQUAL if sizes not in many],
    }
    shares = {name: [coverage(*case) for case in some] for name, some in cases.items()}
    return {
        "coverage": {name: [min(some), max(some)] for name, some in shares.items()},
        "wrong": {kind: wrong(kind) for kind in ("normal", "exponential")},
    }


def arithmetic_errors(setting: Setting, patterns: Sequence[Pattern], windows: Sequence[int]) -> dict[str, float]:
    """The largest relative errors of KL and key loss: from the same fp32 logits, and from another forward's."""
    package = PatternLosses(setting.layers.model, setting.checkpoint.site_layers)
    errors: dict[str, float] = {}
    for number in windows:
        ids = setting.text.losses.ids[number]
        window, labels = Window(number, ids.tolist(), weighs_keys=True), ids[1:]
        # Logits of all tokens that have a label: the last is a label only.
        queries, count = Window("queries", ids[:-1].tolist()), len(labels)
        full = package.logits(setting.full, queries, count)[0].float()
        single, double = (weights(package, setting.full, ids, whole) for whole in (full, full.double()))
        for pattern, measured in zip(patterns, package.compare(patterns, [window])[0], strict=True):
            logits = package.logits(pattern, queries, count)[0].float()
            ours = window_loss(logits, labels, full, single)
            p, q = full.double().log_softmax(-1), logits.double().log_softmax(-1)
            exact = {
                "KL": float((p.exp() * (p - q)).sum()),
                "key loss": float((label_losses(logits.double(), labels) * double.to(labels.device)).sum()),
            }
            for suffix, loss in (("", ours), (", forwards apart", measured)):
                for name, value in (("KL", loss.divergence), ("key loss", loss.key_loss)):
                    error = abs(value / exact[name] - 1)
                    errors[name + suffix] = max(errors.get(name + suffix, 0.0), error)
    package.switch.remove()
    return errors


def weights(package: PatternLosses, pattern: Pattern, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The key weight of each label, in the precision of all full's ``logits`` ``[labels, vocabulary]``."""
    labels = ids[1:]
    long_losses = label_losses(logits, labels)
    short_losses = long_losses.clone()
    for start, first, end in short_pieces(len(labels)):
        piece = Window("piece", ids[start:end].tolist())
        near = package.logits(pattern, piece, end - first)[0].to(logits.dtype)
        short_losses[first:end] = label_losses(near, labels[first:end])
    return key_weights(long_losses.cpu(), short_losses.cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench_setting.add_options(parser)
    bench_setting.run(parser, QualityBench, PARTS, "outputs/bench-quality.jsonl")


if __name__ == "__main__":
    main()
