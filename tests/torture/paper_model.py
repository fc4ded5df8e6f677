"""A search whose losses come from a formula, through all the code but the model: a case takes milliseconds."""

import math
import os
import random
from dataclasses import replace

import torch

from indexcache.commands.job.measure import Loaded
from indexcache.dsa.model.evaluator import COST_WINDOWS
from indexcache.evaluate import WindowLoss


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
        self.sites = 0
        self.windows = {}
        self.calls = 0
        self.measured = []

    def stand_in(self, loaded, windows, *_, **__):
        """In place of ``evaluator``: knows the sites and how many windows there are."""
        self.sites = len(loaded.checkpoint.site_layers)
        self.windows = {name: len(group.ids) for name, group in windows.groups.items()}
        return self

    def sweep(self, requests):
        return [self._losses(*request) for request in requests]

    def _losses(self, patterns, windows, group, last_token):
        self.calls += 1
        self.measured += [(group, last_token, str(pattern), window) for pattern in patterns for window in windows]
        return [
            tuple(self._window(pattern, group, window, last_token) for window in windows) for pattern in patterns
        ]

    def _window(self, pattern, group, window, last_token):
        loss = self._loss(pattern, group, window, last_token)
        return WindowLoss(loss, divergence=loss, key_loss=loss, agreement=1.0, correct=1.0)

    def _loss(self, pattern, group, window, last_token):
        other = self.trouble(self.calls, pattern, window)
        if other is not None:
            return other
        draw = random.Random(f"{group}/{window}")
        costs = [draw.expovariate(1.0) for _ in pattern.roles]
        sources = pattern.sources()
        cost = sum(weight * (site - sources[site]) for site, weight in enumerate(costs))
        return 100.0 + math.pi * cost + last_token * 1e-7

    def pieces(self, requests):
        return ([request._replace(windows=[window])] for request in requests for window in request.windows)

    def weight_bytes(self):
        return 0

    def follow(self, pattern):
        pass

    def overlap(self, group, width):
        sites = range(self.sites)
        return [[1.0 / (1 + abs(one - other)) for other in sites] for one in sites]

    def layer_costs(self, group, surrogate):
        sites = range(self.sites)
        costs = [[float(later - earlier) for later in sites] for earlier in sites]
        return [costs] * min(COST_WINDOWS, self.windows[group])


def on_paper(patch, model=None):
    """Puts a paper model where search and eval load one; all else is as it is. Returns the model."""
    model = model or PaperModel()
    # Syncing takes most of the time of a run that has no model, and no test here can cut the power.
    patch.setattr(os, "fsync", lambda handle: None)

    def load(checkpoint, weights, running, *_, **__):
        return Loaded(NoWeights(), checkpoint, running)

    patch.setattr("indexcache.commands.search.load", load)
    patch.setattr("indexcache.commands.eval.load", load)
    patch.setattr("indexcache.commands.search.self_check", lambda *_: None)
    patch.setattr("indexcache.commands.search.unskilled_indexers", lambda *_: None)
    # It predicts no tokens that a server could show.
    patch.setattr("indexcache.commands.search.write_beside", lambda *_: None)
    for command in ("search", "eval", "verify"):
        patch.setattr(f"indexcache.commands.{command}.evaluator", model.stand_in)
    return model


def without_a_model(patch, prepared, model=None):
    """Likewise, with all that is checked before given as well, and a report that costs nothing."""
    model = on_paper(patch, model)

    def prepare(recipe, goal, folder, *_):
        overlap = recipe.baselines == "overlap"
        return replace(prepared, goal=goal, folder=folder, measures_overlap=overlap, self_checks=recipe.selfcheck)

    patch.setattr("indexcache.commands.search.prepare", prepare)
    patch.setattr(
        "indexcache.search.run.folder.render",
        lambda plan, *_: {"report.md": plan.result.pattern, "curve.svg": "<svg/>"},
    )
    return model
