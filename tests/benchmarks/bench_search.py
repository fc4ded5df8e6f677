"""Measures searches against Algorithm 1 as written, on the same windows and held-out ones, in one run.

It shows whether an eighth of the text gives the same plan, how fast does beside exact, which objective chooses
best, and how good plans of layer costs alone are. A pattern's losses on a window are measured once, in batches;
what a search asks for is counted as the program counts it. On two CPU cores all of it takes hours: ``--parts`` and
``--seconds`` take some of it, and ``--out`` keeps what is measured. Run by hand or with ``make bench-search``.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import bench_setting
from bench_results import Book, OutOfTimeError, Row
from bench_setting import HELD_OUT_PART, Outcome, Setting, Texts

from indexcache.dsa.long.capacity import free_memory, path_budget
from indexcache.dsa.model.costs import layer_costs
from indexcache.dsa.model.evaluator import COST_WINDOWS, Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.dsa.model.tail import Window
from indexcache.evaluate import CALIBRATION
from indexcache.pattern import Pattern
from indexcache.search.goal import Goal, Method
from indexcache.search.losses import Difference
from indexcache.search.search import Problem, SearchProgress, choose
from indexcache.search.strategies.dp import dp_patterns, mean_costs

DRAWS = (4, 8, 16, 32, 4, 6, 12, 24, 8, 16)
"""Windows of the draws on which fast and exact are compared."""
PARTS = ("default", "order", "cost", "draws", "dp", "time", "objectives")
"""In the order in which they are measured."""


class SearchBench:
    """The parts of the benchmark."""

    def __init__(self, setting: Setting, book: Book) -> None:
        self.setting = setting
        self.book = book
        self.plans: dict[str, Pattern] = {}

    def outcome(self, name: str, part: str, windows: int, **changes: Any) -> Outcome:
        """A search on the first windows of a calibration set, the default settings with ``changes``."""
        numbers = self.setting.text.parts[part][:windows]
        return self._outcome(f"{name}, {windows} windows, {part}", self.setting.text, numbers, part, changes)

    def _outcome(
        self, name: str, texts: Texts, numbers: Sequence[int], part: str, changes: dict[str, Any]
    ) -> Outcome:
        method = self.setting.method(**changes)
        result = self.book.result(name, lambda: vars(self.setting.search(method, texts, numbers, part)))
        outcome = Outcome(**{**result, "order": tuple(result["order"])})
        self.plans[name] = outcome.plan
        return outcome

    def default(self, part: str, windows: int) -> Outcome:
        return self.outcome("default", part, windows)

    def algorithm_1(self, part: str) -> Outcome:
        """Algorithm 1 as written: every candidate on every one of W windows, by LM loss."""
        windows = self.setting.options.windows
        return self.outcome("Algorithm 1", part, windows, strategy="exact", objective="loss", surrogate="none")

    def increase(self, pattern: Pattern, over: Pattern | None = None, figure: str = "loss") -> Difference:
        """On the held-out windows."""
        return self.setting.text.increase(pattern, over or self.setting.full, HELD_OUT_PART, figure)

    def differences(self, windows: int) -> list[Difference]:
        """Of each set, how much worse the default on ``windows`` is than Algorithm 1 on W, held out."""
        return as_time_allows(
            lambda part=part: self.increase(self.default(part, windows).plan, self.algorithm_1(part).plan)
            for part in self.setting.sets
        )

    def default_part(self) -> list[Row]:
        """The default on an eighth of the windows against Algorithm 1."""
        setting = self.setting
        few, windows = setting.few, setting.options.windows
        differences = self.differences(few)
        sets = setting.sets[: len(differences)]
        ours = [self.increase(self.default(part, few).plan).delta for part in sets]
        theirs = [self.increase(self.algorithm_1(part).plan).delta for part in sets]
        measured = f"{listed(ours)} against {listed(theirs)}; paired {'; '.join(map(shown, differences))}"
        uniform = shown(self.increase(setting.uniform))
        what = f"held-out loss increase: default, {few} windows, against Algorithm 1, {windows}"
        return [
            Row.judged(what, "not worse", measured, not_worse(differences)),
            Row.judged("uniform, for comparison", "", uniform, None),
        ]

    def cost_part(self) -> list[Row]:
        """The fewest windows on which the default is as good as Algorithm 1, and what it takes there."""
        setting, counts = self.setting, [1]
        while counts[-1] < setting.options.windows:
            counts.append(min(2 * counts[-1], setting.options.windows))
        for windows in counts:
            differences = self.differences(windows)
            if not_worse(differences):
                break
        else:
            text = f"not reached with {counts[-1]} windows"
            what = "window evaluations to Algorithm 1's quality"
            return [Row.judged(what, "<= 1/50", text, False), self.layers_row()]
        asked = statistics.mean(self.default(part, windows).window_evaluations for part in setting.sets)
        costs = min(windows, COST_WINDOWS) * self.cost_passes(setting.options.surrogate)
        fewer = setting.algorithm_1_evaluations / (asked + costs)
        measured = (
            f"1/{fewer:.0f}: {asked:.0f} and layer costs worth {costs:.0f}, on {windows} windows, of "
            f"{setting.algorithm_1_evaluations}"
        )
        return [
            Row.judged("window evaluations to Algorithm 1's quality", "<= 1/50", measured, fewer >= 50),
            self.layers_row(),
        ]

    def layers_row(self) -> Row:
        """How many layers the default runs on W windows, counted as the program counts them."""
        setting, windows = self.setting, self.setting.options.windows
        spent = statistics.mean(self.default(part, windows).layer_windows for part in setting.sets)
        literal = setting.algorithm_1_evaluations * setting.checkpoint.layers
        measured = f"{spent:,.0f}, {literal / spent:.1f}x fewer than Algorithm 1's {literal:,}"
        return Row.judged(f"layer-windows of the default on {windows} windows", "", measured, None)

    def cost_passes(self, surrogate: str) -> float:
        """What layer costs take, a window, in evaluations of a pattern: by the layers and attentions run."""
        if surrogate == "none":
            return 0.0

        def measure() -> float:
            self.setting.costs(self.setting.text, self.setting.text.parts["set 0"][0], surrogate)
            return self.setting.cost_runs[surrogate] / self.setting.checkpoint.layers

        return float(self.book.result(f"passes of {surrogate} costs", measure))

    def order_part(self) -> list[Row]:
        """How alike the orders of removal of disjoint sets are, under default settings and by LM loss."""
        windows, rows = self.setting.options.windows, []
        for objective in ("expected-loss", "loss"):
            orders = [
                self.outcome(f"fast by {objective}", part, windows, objective=objective).order
                for part in self.setting.sets
            ]
            correlations = [
                rank_correlation(ranks(one, self.setting.sites), ranks(other, self.setting.sites))
                for place, one in enumerate(orders)
                for other in orders[place + 1 :]
            ]
            met = min(correlations) >= 0.9 if correlations and objective == "expected-loss" else None
            target = ">= .9" if objective == "expected-loss" else ""
            what = f"rank correlation of the order of removal between sets of {windows}, by {objective}"
            rows.append(Row.judged(what, target, ", ".join(f"{value:.2f}" for value in correlations), met))
        return rows

    def draws_part(self) -> list[Row]:
        """Fast against exact, same objective and windows: the demo's setting and other draws."""
        setting = self.setting
        pool = [number for part in setting.sets for number in setting.text.parts[part]]
        try:
            draws = [("demo's setting", setting.demo, setting.demo.parts["demo"])]
        except ImportError as error:  # the demo's order of documents is made by the datasets library
            print(f"the demo's setting is left out: {error}", flush=True)
            draws = []
        for number, windows in enumerate(DRAWS[: setting.options.draws]):
            numbers = random.Random(number).sample(pool, min(windows, len(pool)))
            draws.append((f"draw {number} of {len(numbers)} windows", setting.text, tuple(numbers)))
        differences = as_time_allows(lambda draw=draw: self.fast_over_exact(*draw) for draw in draws)
        median = statistics.median(difference.delta for difference in differences)
        worst = max(map(errors_of, differences))
        measured = f"worst {worst:+.1f} standard errors, median {median:+.5f}, {len(differences)} draws"
        met = worst <= 2 and median <= 0
        return [
            Row.judged("fast over exact, held out", "<= 2 standard errors; median 0", measured, met),
            *(
                Row.judged(f"fast over exact, {name}", "", shown(difference), None)
                for (name, _, _), difference in zip(draws, differences, strict=False)
            ),
        ]

    def fast_over_exact(self, name: str, texts: Texts, numbers: Sequence[int]) -> Difference:
        """How much worse the plan of fast is than that of exact on the same windows, held out."""
        setting = self.setting
        fast = self._outcome(f"fast, {name}", texts, numbers, "", {})
        exact = self._outcome(f"exact, {name}", texts, numbers, "", {"strategy": "exact", "surrogate": "none"})
        # Where there is no text but the demo's, its plan is judged as the demo judges it.
        judge = setting.demo if texts is not setting.text and not setting.demo_is_apart else setting.text
        return judge.increase(fast.plan, exact.plan, HELD_OUT_PART)

    def dp_part(self) -> list[Row]:
        """Plans of layer costs alone against the best found by any means."""
        setting, rows, plans = self.setting, [], {}
        windows = setting.options.windows
        self.outcome("refined", "set 0", windows, refine_rounds=20)
        for surrogate in ("fisher", "error"):
            for count in (setting.few, 2 * setting.few):
                plans[surrogate, count] = [
                    self.outcome(f"dp by {surrogate}", part, count, strategy="dp", surrogate=surrogate).plan
                    for part in setting.sets
                ]
        for part in setting.sets:
            self.algorithm_1(part)
            self.default(part, setting.few)
        name, best = self.best()
        for (surrogate, count), patterns in plans.items():
            ratios = [self.increase(pattern).delta / best for pattern in patterns]
            measured = f"{', '.join(f'{ratio:.2f}x' for ratio in ratios)} of {best:+.4f} ({name})"
            what = f"dp by {surrogate}, {count} windows, over the best found"
            rows.append(Row.judged(what, "<= 1.3x", measured, statistics.mean(ratios) <= 1.3))
        return rows

    def best(self) -> tuple[str, float]:
        """The plan with the lowest held-out increase of all that this run has found, and that increase."""
        increases = {name: self.increase(plan).delta for name, plan in self.plans.items()}
        name = min(increases, key=lambda plan: increases[plan])
        return name, increases[name]

    def time_part(self) -> list[Row]:
        """Seconds of the program itself for dp and for fast, with the same settings."""
        return [row for windows in (self.setting.few, self.setting.options.windows) for row in self.times(windows)]

    def times(self, windows: int) -> list[Row]:
        """The same on the first ``windows`` of a set: fast evaluates on all, layer costs take a few of them."""
        setting, rows = self.setting, []
        numbers = setting.text.parts["set 0"][:windows]
        costly, method = numbers[:COST_WINDOWS], setting.method(surrogate="none")
        fast = self.book.result(
            f"seconds of fast, {windows} windows", lambda: program_seconds(setting, method, numbers)
        )
        for surrogate in ("fisher", "error"):
            name = f"seconds of dp by {surrogate}, {len(costly)} windows"
            seconds = self.book.result(name, lambda surrogate=surrogate: dp_seconds(setting, surrogate, costly))
            measured = f"{seconds:.2f} s on {len(costly)}, 1/{fast / seconds:.1f} of {fast:.2f} s on {windows}"
            what = f"time of dp by {surrogate} against fast, {windows} windows"
            rows.append(Row.judged(what, "<= 1/10", measured, 10 * seconds <= fast))
        return rows

    def objectives_part(self) -> list[Row]:
        """What each objective's plans cost held out, for as many evaluated windows."""
        setting, rows = self.setting, []
        for windows in (setting.few, setting.options.windows):
            losses = {}
            for objective in ("expected-loss", "loss", "key-loss", "mix"):
                # A mix has a probe beside each window: half as many of each.
                count = max(1, windows // 2) if objective == "mix" else windows
                if objective == "mix" and setting.mixed_probes is None:
                    continue
                plans = [
                    self.outcome(f"fast by {objective}", part, count, objective=objective).plan
                    for part in setting.sets
                ]
                losses[objective], text = self.described(plans)
                rows.append(Row.judged(f"fast by {objective}, {count} windows, held out", "", text, None))
            winner = min(losses, key=lambda name: losses[name])
            what = f"least LM loss for {windows} windows"
            rows.append(Row.judged(what, "the default", winner, winner == "expected-loss"))
        return rows

    def described(self, plans: Sequence[Pattern]) -> tuple[float, str]:
        """The mean LM-loss increase of some plans, and their mean figures in words."""
        losses = [self.increase(plan).delta for plan in plans]
        mean = {
            name: statistics.mean(self.increase(plan, figure=figure).delta for plan in plans)
            for name, figure in (("KL", "divergence"), ("key loss", "key_loss"))
        }
        text = f"LM loss {listed(losses)}; " + ", ".join(f"{name} {value:+.4f}" for name, value in mean.items())
        if (probes := self.setting.probes) is not None:
            damage = [probes.increase(plan, self.setting.full, HELD_OUT_PART).delta for plan in plans]
            text += f", probes {statistics.mean(damage):+.4f}"
        return statistics.mean(losses), text


def program_seconds(setting: Setting, method: Method, numbers: Sequence[int]) -> float:
    """How long a search of the program itself takes, its model loaded and warm."""
    ids = [setting.text.losses.ids[number].tolist() for number in numbers]
    layers, width = setting.checkpoint.site_layers, setting.checkpoint.selection_width
    memory = PathMemory(layers, len(ids), path_budget(free_memory(setting.layers.device)))
    losses = PatternLosses(setting.layers.model, layers, blind=width, memory=memory)
    evaluate = Evaluator(losses, {CALIBRATION: [Window(number, window) for number, window in enumerate(ids)]})
    losses.compare([setting.uniform], [Window("warm", ids[0])], keep_states=False)
    problem = Problem(
        evaluate,
        labels={CALIBRATION: [setting.text.losses.labels] * len(ids)},
        documents={CALIBRATION: [setting.text.documents[number] for number in numbers]},
        sites=setting.sites,
        goal=Goal(keep=setting.options.keep),
        method=method,
    )
    began = time.perf_counter()
    choose(problem, SearchProgress(step=lambda step: evaluate.follow(step.pattern)))
    seconds = time.perf_counter() - began
    losses.switch.remove()
    return seconds


def dp_seconds(setting: Setting, surrogate: str, numbers: Sequence[int]) -> float:
    """How long layer costs and dynamic programming take, the model loaded and warm."""
    windows = [setting.text.losses.ids[number].tolist() for number in numbers]
    model, switch, width = setting.layers.model, setting.layers.switch, setting.checkpoint.selection_width
    layer_costs(model, switch, windows[:1], surrogate, width)
    began = time.perf_counter()
    dp_patterns(mean_costs(layer_costs(model, switch, windows, surrogate, width).windows))
    return time.perf_counter() - began


def as_time_allows(measures: Iterable[Callable[[], Difference]]) -> list[Difference]:
    """What is measured before time is over; OutOfTimeError where that is nothing."""
    differences: list[Difference] = []
    try:
        for measure in measures:
            differences.append(measure())
    except OutOfTimeError:
        if not differences:
            raise
    return differences


def errors_of(difference: Difference) -> float:
    """A difference in its standard errors."""
    if not difference.delta or not difference.standard_error:
        return 0.0
    return difference.delta / difference.standard_error


def not_worse(differences: Sequence[Difference]) -> bool:
    """Whether none is worse by more than one standard error, and their mean by no more than half of one."""
    errors = list(map(errors_of, differences))
    return max(errors) <= 1 and statistics.mean(errors) <= 0.5


def shown(difference: Difference) -> str:
    """A difference and its standard error."""
    return f"{difference.delta:+.5f} ± {difference.standard_error or 0:.5f}"


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+.4f}" for value in values)


def ranks(order: Sequence[int], sites: int) -> list[float]:
    """When each site but the first was removed; those that stayed share the mean of the last places."""
    stayed = (len(order) + sites - 2) / 2
    return [float(order.index(site)) if site in order else stayed for site in range(1, sites)]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks, of which ties share the mean."""
    return statistics.correlation(one, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench_setting.add_options(parser)
    parser.add_argument(
        "--draws", type=int, default=len(DRAWS), choices=range(len(DRAWS) + 1),
        help="draws of 4 to 32 windows on which fast and exact are compared, beside the demo's setting",
    )  # fmt: skip
    bench_setting.run(parser, SearchBench, PARTS, "outputs/bench-search.jsonl")


if __name__ == "__main__":
    main()
