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
