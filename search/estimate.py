"""What a search will cost, from going through it on made-up losses, before any weight is loaded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..groups import CALIBRATION, HELD_OUT
from ..pattern import Pattern
from .findings import Goal, Method, Told, run_search
from .greedy import candidate_evaluations

# Of the made-up losses. Chosen so that ``fast`` takes about what it took on the models in tests/benchmarks.
_NOISE = 1.5
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
        evaluations: patterns measured, one per pattern and call.
        window_evaluations: pattern x window pairs measured.
        layer_windows: decoder-layer executions of the whole run.
        search_layer_windows: of the removals and swaps alone.
        algorithm_1_layer_windows: what Algorithm 1 as written takes to the same depth.
    """

    evaluations: int
    window_evaluations: int
    layer_windows: int
    search_layer_windows: int
    algorithm_1_layer_windows: int

    @property
    def fewer(self) -> float:
        """How many times less the search takes than Algorithm 1."""
        return self.algorithm_1_layer_windows / max(1, self.search_layer_windows)


def expected_cost(shape: Shape, goal: Goal, method: Method) -> Expected:
    """Goes through the search with made-up losses and counts what a model would have had to run.

    For ``exact`` and ``blocks`` the count is off only by which sites happen to go. What ``fast`` and
    refinement take depends on the losses, so theirs is a guess.
    """
    sites, evaluate = len(shape.site_layers), _MadeUp(shape, method)
    findings = run_search(
        evaluate,
        labels=1,
        documents={CALIBRATION: range(shape.windows), HELD_OUT: range(shape.heldout)},
        sites=sites,
        goal=goal,
        method=method,
        told=Told(step=lambda step: evaluate.count.follow(step.pattern)),
        layer_windows=lambda: evaluate.count.layer_windows,
    )
    literal = candidate_evaluations(sites, findings.steps[-1].pattern.kept if findings.steps else sites)
    return Expected(
        evaluations=evaluate.evaluations,
        window_evaluations=evaluate.window_evaluations,
        layer_windows=evaluate.count.layer_windows,
        search_layer_windows=findings.search_layer_windows,
        algorithm_1_layer_windows=literal * shape.windows * shape.layers,
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

    def measure(self, patterns: Sequence[Pattern], windows: Sequence[int], remember: bool = True) -> None:
        """Counts ``patterns`` on calibration windows given by number; ``remember`` keeps and uses states."""
        for window in windows:
            known = {self._base[window], *self._latest[window]} if remember and window in self._base else set()
            together: dict[tuple[int, str], list[Pattern]] = {}
            for pattern in patterns:
                start = max((self._agreed(each, pattern) for each in known), default=0)
                passed = sum(layer < start for layer in self._shape.site_layers)
                together.setdefault((start, pattern.roles[:passed]), []).append(pattern)
            self.layer_windows += sum(self._below(group, start) for (start, _), group in together.items())
            if remember and len(patterns) == 1:
                self._latest[window] = (*self._latest.get(window, ())[-1:], patterns[0])
                self._base.setdefault(window, patterns[0])

    def follow(self, pattern: Pattern) -> None:
        """``pattern`` is in force from now on."""
        self._base |= {window: pattern for window, latest in self._latest.items() if pattern in latest}

    def _agreed(self, known: Pattern, pattern: Pattern) -> int:
        """The deepest layer at which a known pattern's states are kept and ``pattern`` has the same."""
        return self._shape.site_layers[min(_first_difference(known, pattern), len(known) - 1)]

    def _below(self, patterns: Sequence[Pattern], start: int) -> int:
        """Layers from ``start`` on, each as often as the patterns are in different states there."""
        total = max(0, self._shape.site_layers[0] - start)
        ends = [*self._shape.site_layers[1:], self._shape.layers]
        for site, (first, end) in enumerate(zip(self._shape.site_layers, ends, strict=True)):
            branches = len({pattern.roles[: site + 1] for pattern in patterns})
            total += branches * max(0, end - max(start, first))
        return total


class _MadeUp:
    """Losses that behave like measured ones: sites differ, windows scatter, distance from the source tells."""

    def __init__(self, shape: Shape, method: Method) -> None:
        self._shape = shape
        self.count = LayerCount(shape)
        self.evaluations, self.window_evaluations = 0, 0
        sites, chance = len(shape.site_layers), random.Random(0)
        order = list(range(sites))
        chance.shuffle(order)
        if method.priorities:
            order.sort(key=lambda site: method.priorities.get(site, 0.0))
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
        self.evaluations += len(patterns)
        self.window_evaluations += len(patterns) * len(numbers)
        at_once = self._shape.max_rows or len(patterns)
        for first in range(0, len(patterns), at_once):
            remember = group == CALIBRATION and not last_token
            self.count.measure(patterns[first : first + at_once], numbers, remember)
        return [self._losses(pattern, numbers) for pattern in patterns]

    def _losses(self, pattern: Pattern, numbers: Sequence[int]) -> tuple[float, ...]:
        sums, distance = [10.0 * len(pattern)] * len(numbers), 0
        for site in range(len(pattern)):
            distance = 0 if pattern.is_full(site) else distance + 1
            if distance:
                weight, scatter = self._dearness[site] * (1 + _FARTHER * (distance - 1)), self._scatter[site]
                sums = [total + weight * scatter[number] for total, number in zip(sums, numbers, strict=True)]
        return tuple(sums)


def _first_difference(one: Pattern, other: Pattern) -> int:
    pairs = zip(one.roles, other.roles, strict=True)
    return next((site for site, (a, b) in enumerate(pairs) if a != b), len(one))
