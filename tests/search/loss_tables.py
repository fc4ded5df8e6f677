"""Losses of every pattern without a model: random ones, and ones that behave like a model's."""

import functools
import math
import random

from indexcache.evaluate import WindowLoss
from indexcache.pattern import Pattern
from indexcache.search.losses import Measurements
from indexcache.search.objective import ScoredWindow


def score(loss):
    """A window whose loss is what chooses."""
    return ScoredWindow(loss, WindowLoss(loss, divergence=loss))


class LossTable:
    """Independent random losses of every pattern, fixed by a seed; remembers what was measured."""

    def __init__(self, seed, sites, windows=6):
        self.seed, self.sites, self.windows, self.measured, self.sweeps = seed, sites, windows, [], 0

    def loss(self, pattern, window):
        return random.Random(f"{self.seed}/{pattern}/{window}").random()

    def losses(self, pattern):
        return tuple(self.loss(pattern, window) for window in range(self.windows))

    def measure(self, patterns, windows):
        self.measured += [(pattern, window) for pattern in patterns for window in windows]
        return [tuple(score(self.loss(pattern, window)) for window in windows) for pattern in patterns]

    def sweep(self, requests):
        self.sweeps += 1
        return [self.measure(request.patterns, request.windows) for request in requests]

    def measurements(self):
        return Measurements(self.sweep, self.windows)


class DistanceTable(LossTable):
    """A shared site costs its weight times the distance to its source, plus noise that windows share."""

    @functools.cached_property
    def weights(self):
        draw = random.Random(f"{self.seed}/weights")
        return [draw.expovariate(1.0) for _ in range(self.sites)]

    def loss(self, pattern, window):
        sources = Pattern(str(pattern)).sources()
        cost = sum(self.weights[site] * (site - source) for site, source in enumerate(sources))
        return 3.0 + cost / self.sites + 0.001 * random.Random(f"{self.seed}/{pattern}/{window}").random()


class SpreadTable(LossTable):
    """As measured models: a few sites cost most, distance to the source counts, and ``scatter`` blurs windows."""

    def __init__(self, seed, sites, windows=32, scatter=0.2):
        super().__init__(seed, sites, windows)
        draw = random.Random(f"{seed}/{sites}")
        self.costs = []
        for _ in range(sites):
            weight = draw.expovariate(1.0)
            self.costs.append([weight * (1 + scatter * draw.gauss(0, 1)) for _ in range(windows)])

    def loss(self, pattern, window):
        distances = [site - source for site, source in enumerate(Pattern(str(pattern)).sources())]
        pairs = zip(self.costs, distances, strict=True)
        return 3.0 + sum(costs[window] * (0.7 + 0.3 * distance) for costs, distance in pairs if distance)

    def measure(self, patterns, windows):
        self.measured += [(pattern, window) for pattern in patterns for window in windows]
        columns = [self._losses(pattern) for pattern in patterns]
        return [tuple(score(losses[window]) for window in windows) for losses in columns]

    @functools.cache  # noqa: B019 - a table lives as long as its test
    def _losses(self, pattern):
        return [self.loss(pattern, window) for window in range(self.windows)]


def algorithm_1(table, sites, kept):
    """The paper's text, over strings: flip each F but the first, keep the flip with the lowest loss."""
    pattern, order = "F" * sites, []
    while pattern.count("F") > kept:
        tried = {}
        for site in range(1, sites):
            if pattern[site] == "F":
                flipped = pattern[:site] + "S" + pattern[site + 1 :]
                tried[site] = math.fsum(table.losses(flipped)) / table.windows
        best = min(tried, key=tried.get)
        pattern = pattern[:best] + "S" + pattern[best + 1 :]
        order.append(best)
    return order
