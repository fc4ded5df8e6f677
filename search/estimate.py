"""What a search will cost, from going through it on made-up losses, before any weight is loaded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..evaluate import (
    CALIBRATION,
    HELD_OUT,
    HELD_OUT_PROBES,
    PROBES,
    REFINEMENT,
    PatternWindowLosses,
    Request,
    WindowLoss,
)
from ..pattern import Pattern
from .cost import LayerCount, Shape, SweepRows, layer_cost_runs, layer_cost_sweeps, times_fewer
from .goal import Goal, Method
from .search import Problem, SearchProgress, run_search

# Of the made-up losses. Chosen so that ``fast`` takes about what it took on the models in tests/benchmarks.
_NOISE = 1.5
_MOST_WINDOWS = 32  # gone through; more cost in proportion, if anything less
_FARTHER = 0.3
_GROUPS = ("windows", "heldout", "refinement", "probes", "mixed_probes")


@dataclass(frozen=True)
class ExpectedCost:
    """The cost to expect; a layer-window is one decoder layer run on one window in one state.

    Args:
        window_evaluations: pattern x window pairs measured.
        layer_windows: decoder-layer executions of the whole run, baselines and checks included.
        shared_layer_windows: those of them that run no indexer.
        search_layer_windows: those of the removals and swaps alone, and of layer costs where these choose.
        algorithm_1_layer_windows: what Algorithm 1 as written takes for the removals.
        sweep_rows: what each pass over the layers carries, in their order; one for whatever is asked together.
        students: indexers that are distilled for candidates.
    """

    window_evaluations: int
    layer_windows: int
    shared_layer_windows: int
    search_layer_windows: int
    algorithm_1_layer_windows: int
    sweep_rows: tuple[SweepRows, ...]
    students: int = 0

    @property
    def sweeps(self) -> int:
        """Passes over the layers."""
        return len(self.sweep_rows)

    @property
    def fewer(self) -> float:
        """How many times fewer layer-windows the removals and swaps take than Algorithm 1."""
        return times_fewer(self.algorithm_1_layer_windows, self.search_layer_windows)


def expected_cost(shape: Shape, goal: Goal, method: Method, overlap: bool = False) -> ExpectedCost:
    """Goes through the search with made-up losses and counts what a model would have had to run.

    For ``exact`` and ``blocks`` the count is off only by which sites happen to go. What ``fast`` and
    refinement take depends on the losses, so theirs is a guess. States are kept as far as ``shape`` says.

    Args:
        shape: of the search.
        goal: how far it is to go.
        method: how it is to go about it; layer costs are made up too, also where they were measured, so that they
            speak of the made-up losses.
        overlap: overlap patterns are to be measured too.
    """
    sites, times = len(shape.site_layers), max(1.0, shape.windows / _MOST_WINDOWS)
    sizes = {name: round(getattr(shape, name) / times) for name in _GROUPS}
    small = replace(shape, **sizes)
    evaluate = _InventedLosses(small, method)
    if overlap:
        # Any matrix would do: it decides which overlap patterns are measured, and hardly what they cost.
        nearness = [[1 / (1 + abs(row - column)) for column in range(sites)] for row in range(sites)]
        method = replace(method, overlap_matrix=nearness)
    if method.surrogate != "none":
        method = replace(method, layer_costs=evaluate.layer_costs())
    count, windows = evaluate.count, _windows(small)
    findings = run_search(
        Problem(
            evaluate,
            labels={group: [1] * len(numbers) for group, numbers in windows.items()},
            documents=windows,
            sites=sites,
            goal=goal,
            method=method,
            layer_windows=lambda: count.layer_windows,
        ),
        SearchProgress(step=lambda step: count.follow(step.pattern)),
    )
    costs = _layer_cost_runs(shape, method)
    beside = costs + (shape.windows * shape.layers if overlap else 0)
    return ExpectedCost(
        window_evaluations=round(times * evaluate.window_evaluations),
        layer_windows=round(times * count.layer_windows) + beside,
        shared_layer_windows=round(times * count.shared_layer_windows),
        search_layer_windows=round(times * findings.search_layer_windows) + (costs if method.costs_choose else 0),
        algorithm_1_layer_windows=findings.algorithm_1_evaluations
        * round(times * findings.windows)
        * shape.layers,
        sweep_rows=(*_beside_sweeps(shape, method, overlap), *(rows.times(times) for rows in evaluate.sweep_rows)),
        students=len(count.segments),
    )


def _windows(shape: Shape) -> dict[str, range]:
    """The windows of each group, by number; no two are of one document."""
    return {
        CALIBRATION: range(shape.windows),
        HELD_OUT: range(shape.heldout),
        REFINEMENT: range(shape.refinement),
        HELD_OUT_PROBES: range(shape.probes),
        PROBES: range(shape.mixed_probes),
    }


def _layer_cost_runs(shape: Shape, method: Method) -> int:
    """Layer-windows of measuring layer costs; 0 where they are not."""
    if method.surrogate == "none":
        return 0
    windows = min(shape.cost_windows, shape.windows)
    return layer_cost_runs(method.surrogate, windows, shape.layers, shape.site_layers, shape.shared_layers)


def _beside_sweeps(shape: Shape, method: Method, overlap: bool) -> list[SweepRows]:
    """The passes that no pattern is measured in: of layer costs, and of selections that overlap."""
    sweeps = []
    if method.surrogate != "none":
        windows = min(shape.cost_windows, shape.windows)
        sweeps += layer_cost_sweeps(
            method.surrogate, windows, shape.layers, shape.site_layers, shape.shared_layers
        )
    if overlap:
        full = tuple(shape.windows * (layer in shape.site_layers) for layer in range(shape.layers))
        sweeps.append(SweepRows(shape.windows, full, tuple(shape.windows - count for count in full)))
    return sweeps


class _InventedLosses:
    """Losses that behave like measured ones: sites differ, windows scatter, distance from the source counts."""

    def __init__(self, shape: Shape, method: Method) -> None:
        self._shape = shape
        self.count = LayerCount(shape)
        self.window_evaluations = 0
        self.sweep_rows: list[SweepRows] = []
        sites, draw = len(shape.site_layers), random.Random(0)
        order = list(range(sites))
        draw.shuffle(order)
        if method.order:
            order.sort(key=lambda site: method.order.index(site) if site in method.order else sites)
        # Increases of measured models are spread about exponentially: a few sites cost most.
        self._weights = {site: -math.log(1 - (rank + 0.5) / sites) for rank, site in enumerate(order)}
        windows = max(getattr(shape, name) for name in _GROUPS)
        self._scatter = [[1 + _NOISE * draw.gauss(0, 1) for _ in range(windows)] for _ in range(sites)]

    def __call__(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        self.sweep_rows.append(self.count.sweep(requests))
        self.window_evaluations += sum(len(request.patterns) * len(request.windows) for request in requests)
        return [[self._losses(pattern, request.windows) for pattern in request.patterns] for request in requests]

    def layer_costs(self) -> list[list[list[float]]]:
        """What each site costs under each earlier one's selection, ``[windows][sites][sites]``."""
        sites = range(len(self._scatter))
        return [
            [
                [self._cost(site, site - source, number) if source < site else 0.0 for site in sites]
                for source in sites
            ]
            for number in range(min(max(1, self._shape.cost_windows), len(self._scatter[0])))
        ]

    def _cost(self, site: int, distance: int, number: int) -> float:
        """What a shared site adds to the loss of a window, ``distance`` sites behind its source."""
        return self._weights[site] * (1 + _FARTHER * (distance - 1)) * self._scatter[site][number]

    def _losses(self, pattern: Pattern, numbers: Sequence[int]) -> tuple[WindowLoss, ...]:
        sums, distance = [10.0 * len(pattern)] * len(numbers), 0
        for site in range(len(pattern)):
            distance = 0 if pattern.is_full(site) else distance + 1
            if distance:
                sums = [
                    total + self._cost(site, distance, number) for total, number in zip(sums, numbers, strict=True)
                ]
        return tuple(WindowLoss(total, total, total) for total in sums)
