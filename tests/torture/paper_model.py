"""A search whose losses come from a formula, through all the code but the model: a case takes milliseconds."""

import math
import os
import random

import torch

from indexcache.commands.job.measure import Loaded
from indexcache.dsa.long.backends import Backends


class NoWeights(torch.nn.Module):
    """Stands where a model would: of a dtype, on a device."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


class PaperModel:
    """Losses by a formula; counts what it was asked to measure.

    ``trouble(call, pattern, window)`` may return another loss or raise; ``call`` numbers the calls.
    """

    def __init__(self, trouble=lambda call, pattern, window: None):
        self.trouble = trouble
        self.calls = 0
        self.measured = []

    def __call__(self, patterns, group, windows=None, last_token=False):
        self.calls += 1
        found = [[self._loss(pattern, group, window, last_token) for window in windows] for pattern in patterns]
        self.measured += [(group, last_token, str(pattern), window) for pattern in patterns for window in windows]
        return [tuple(each) for each in found]

    def _loss(self, pattern, group, window, last_token):
        other = self.trouble(self.calls, pattern, window)
        if other is not None:
            return other
        draw = random.Random(f"{group}/{window}")
        costs = [draw.expovariate(1.0) for _ in pattern.roles]
        sources = pattern.sources()
        cost = sum(weight * (site - sources[site]) for site, weight in enumerate(costs))
        return 100.0 + math.pi * cost + last_token * 1e-7

    def pieces(self, windows, patterns):
        return ([window] for window in windows)

    def follow(self, pattern):
        pass

    def overlap(self, group, width):
        raise NotImplementedError


def without_a_model(patch, prepared, model=None):
    """Puts a paper model where the search loads one, and a report that costs nothing; returns the model."""
    model = model or PaperModel()
    # Syncing takes most of the time of a run that has no model, and no test here can cut the power.
    patch.setattr(os, "fsync", lambda handle: None)
    patch.setattr("indexcache.commands.search.prepare", lambda *_: prepared)
    patch.setattr("indexcache.commands.search.load", lambda *_: Loaded(NoWeights(), Backends("chunked", "stock")))
    patch.setattr("indexcache.commands.search.self_check", lambda *_: None)
    patch.setattr("indexcache.commands.search.evaluator", lambda *_: model)
    patch.setattr(
        "indexcache.search.run.folder.render",
        lambda plan, *_: {"report.md": plan.result.pattern, "curve.svg": "<svg/>"},
    )
    return model
