"""What a search will cost, from going through it on made-up losses, before any weight is loaded."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ..groups import CALIBRATION, HELD_OUT
from ..pattern import FULL, Pattern
from .findings import Goal, Method, Told, run_search
from .greedy import times_fewer

# Of the made-up losses. Chosen so that ``fast`` takes about what it took on the models in tests/benchmarks.
_NOISE = 1.5
_MOST_WINDOWS = 32  # gone through; more cost in proportion, if anything less
_FARTHER = 0.3


@dataclass(frozen=True)
class Shape:
    """What a search's cost depends on, apart from the losses.

    Args:
        site_layers: absolute ids of the model's sites.
        layers: decoder layers of the model.
        windows: calibration windows.
        heldout: held-out windows.
        max_rows: patterns that share a sweep, at most.
    """

    site_layers: Sequence[int]
    layers: int
    windows: int
    heldout: int
    max_rows: int | None = None


@dataclass(frozen=True)
class Expected:
    """The cost to expect; a layer-window is one decoder layer run on one window in one state.

    Args:
        window_evaluations: pattern x window pairs measured.
        layer_windows: decoder-layer executions of the whole run, baselines and checks included.
        shared_layer_windows: those of them that run no indexer.
        search_layer_windows: those of the removals and swaps alone.
        algorithm_1_layer_windows: what Algorithm 1 as written takes for the removals.
    """

    window_evaluations: int
    layer_windows: int
    shared_layer_windows: int
    search_layer_windows: int
    algorithm_1_layer_windows: int

    @property
    def fewer(self) -> float:
        """How many times fewer layer-windows the removals and swaps take than Algorithm 1."""
        return times_fewer(self.algorithm_1_layer_windows, self.search_layer_windows)


def expected_cost(shape: Shape, goal: Goal, method: Method, overlap: bool = False) -> Expected:
    """Goes through the search with made-up losses and counts what a model would have had to run.

    For ``exact`` and ``blocks`` the count is off only by which sites happen to go. What ``fast`` and
    refinement take depends on the losses, so theirs is a guess. All states are taken to fit in memory.

    Args:
        shape: of the search.
        goal: how far it is to go.
        method: how it is to go about it.
        overlap: overlap patterns are to be measured too.
    """
    sites, times = len(shape.site_layers), max(1.0, shape.windows / _MOST_WINDOWS)
    small = replace(shape, windows=round(shape.windows / times), heldout=round(shape.heldout / times))
    evaluate = _MadeUp(small, method)
    if overlap:
        similar = [[1 / (1 + abs(row - column)) for column in range(sites)] for row in range(sites)]
        method = replace(method, overlap=similar)
    count = evaluate.count
    findings = run_search(
        evaluate,
        labels=1,
        documents={CALIBRATION: range(small.windows), HELD_OUT: range(small.heldout)},
        sites=sites,
        goal=goal,
        method=method,
        told=Told(step=lambda step: count.follow(step.pattern)),
        layer_windows=lambda: count.layer_windows,
    )
    return Expected(
        window_evaluations=round(times * evaluate.window_evaluations),
        layer_windows=round(times * count.layer_windows) + (shape.windows * shape.layers if overlap else 0),
        shared_layer_windows=round(times * count.shared_layer_windows),
        search_layer_windows=round(times * findings.search_layer_windows),
        algorithm_1_layer_windows=findings.algorithm_1_evaluations * shape.windows * shape.layers,
    )


class LayerCount:
    """Counts the decoder layers that measuring patterns takes where what they have in common runs once.

    States are taken to be kept as the model's evaluator keeps them when memory is no limit: of the
    pattern in force and of the last two measured.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._base: dict[int, Pattern] = {}
        self._latest: dict[int, tuple[Pattern, ...]] = {}
        self.layer_windows = 0
        """Layer executions so far."""
        self.shared_layer_windows = 0
        """Those that reused a selection."""

    def measure(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[int],
        remember: bool = True,
        keep_states: bool = True,
    ) -> None:
        """Counts ``patterns`` on calibration windows given by number.

        ``remember`` lets them start from kept states, ``keep_states`` keeps those of a single pattern.
        """
        alike: dict[frozenset[Pattern], int] = {}
        for window in windows:
            known = [self._base[window], *self._latest[window]] if remember and window in self._base else []
            alike[frozenset(known)] = alike.get(frozenset(known), 0) + 1
            if remember and keep_states and len(patterns) == 1:
                self._latest[window] = (*self._latest.get(window, ())[-1:], patterns[0])
                self._base.setdefault(window, patterns[0])
        for states, times in alike.items():
            full, shared = self._from_known(patterns, states)
            self.layer_windows += times * (full + shared)
            self.shared_layer_windows += times * shared

    def follow(self, pattern: Pattern) -> None:
        """``pattern`` is in force from now on."""
        self._base |= {window: pattern for window, latest in self._latest.items() if pattern in latest}

    def _from_known(self, patterns: Sequence[Pattern], known: Collection[Pattern]) -> tuple[int, int]:
        """Layers run on one window, (with an indexer of their own, without)."""
        together: dict[tuple[int, str], list[Pattern]] = {}
        for pattern in patterns:
            start = max((self._agreed(each, pattern) for each in known), default=0)
            passed = sum(layer < start for layer in self._shape.site_layers)
            together.setdefault((start, pattern.roles[:passed]), []).append(pattern)
        runs = [self._below(group, start) for (start, _), group in together.items()]
        return sum(full for full, _ in runs), sum(shared for _, shared in runs)

    def _agreed(self, known: Pattern, pattern: Pattern) -> int:
        """The deepest layer at which a known pattern's states are kept and ``pattern`` has the same."""
        return self._shape.site_layers[min(known.agreement(pattern), len(known) - 1)]

    def _below(self, patterns: Sequence[Pattern], start: int) -> tuple[int, int]:
        """Layers from ``start`` on, each as often as the patterns are in different states there."""
        full, shared = 0, max(0, self._shape.site_layers[0] - start)
        ends = [*self._shape.site_layers[1:], self._shape.layers]
        for site, (first, end) in enumerate(zip(self._shape.site_layers, ends, strict=True)):
            branches = {pattern.roles[: site + 1] for pattern in patterns}
            if first >= start:
                own = sum(roles[-1] == FULL for roles in branches)
                full, shared = full + own, shared + len(branches) - own
            shared += len(branches) * max(0, end - max(start, first + 1))
        return full, shared


class _MadeUp:
    """Losses that behave like measured ones: sites differ, windows scatter, distance from the source tells."""

    def __init__(self, shape: Shape, method: Method) -> None:
        self._shape = shape
        self.count = LayerCount(shape)
        self.window_evaluations = 0
        sites, chance = len(shape.site_layers), random.Random(0)
        order = list(range(sites))
        chance.shuffle(order)
        if method.order:
            order.sort(key=lambda site: method.order.index(site) if site in method.order else sites)
        # Increases of measured models are spread about exponentially: a few sites cost most.
        self._dearness = {site: -math.log(1 - (rank + 0.5) / sites) for rank, site in enumerate(order)}
        most = max(shape.windows, shape.heldout)
        self._scatter = [[1 + _NOISE * chance.gauss(0, 1) for _ in range(most)] for _ in range(sites)]

    def __call__(
        self,
        patterns: Sequence[Pattern],
        group: str,
        windows: Sequence[int] | None = None,
        last_token: bool = False,
    ) -> list[tuple[float, ...]]:
        numbers = range(self._shape.heldout) if windows is None else windows
        self.window_evaluations += len(patterns) * len(numbers)
        at_once = self._shape.max_rows or len(patterns)
        for first in range(0, len(patterns), at_once):
            remember, keep = group == CALIBRATION and not last_token, len(patterns) == 1
            self.count.measure(patterns[first : first + at_once], numbers, remember, keep)
        return [self._losses(pattern, numbers) for pattern in patterns]

    def _losses(self, pattern: Pattern, numbers: Sequence[int]) -> tuple[float, ...]:
        sums, distance = [10.0 * len(pattern)] * len(numbers), 0
        for site in range(len(pattern)):
            distance = 0 if pattern.is_full(site) else distance + 1
            if distance:
                weight, scatter = self._dearness[site] * (1 + _FARTHER * (distance - 1)), self._scatter[site]
                sums = [total + weight * scatter[number] for total, number in zip(sums, numbers, strict=True)]
        return tuple(sums)
