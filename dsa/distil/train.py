"""Trains indexers, each alone: rows are collected, a student learns from them, its parameters are put back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import MeasurementError, ModelError, SettingError
from ..checkpoint.sites import decoder_layers, find_indexers
from ..chunks import ChunkBudget
from ..stream.layers import stream_of
from .collect import CHUNKS, Collection
from .rows import StoredRows
from .segments import Segment
from .students import IndexerCode, Student

RATES = (2e-3, 5e-3, 1.2e-2)
"""Learning rates that the probe tries."""
_PROBE_SHARE, _PROBE_LEAST = 0.1, 20
_CURVE_POINTS = 20


@dataclass(frozen=True)
class Settings:
    """How students are trained.

    Args:
        steps: of each student.
        rows: queries of a window that it learns from.
        windows_a_step: whose gradients make a step.
        learning_rate: the highest; None for a short probe of ``RATES``.
        seed: of the choice of rows and the order of windows.
    """

    steps: int = 400
    rows: int = 128
    windows_a_step: int = 4
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "windows_a_step"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}, but has to be at least 1")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise SettingError(f"the learning rate is {rate}, not a positive number", hint="e.g. 0.005")


@dataclass(frozen=True)
class Trained:
    """A trained indexer.

    Args:
        parameters: fp32 on the CPU, by name as in the indexer.
        curve: of some steps, the number and the mean KL divergence, in nats a row, since the one before.
        learning_rate: the highest, as set or probed.
    """

    parameters: dict[str, torch.Tensor]
    curve: tuple[tuple[int, float], ...]
    learning_rate: float


def collect(
    model: Any,
    site_layers: Sequence[int],
    windows: Sequence[Sequence[int]],
    segments: Sequence[Segment],
    settings: Settings,
    memory: int | None = None,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> StoredRows:
    """Runs ``windows`` through all layers once, all full, and stores what students of ``segments`` learn from.

    Where several processes bring weights together, all of them have to call it alike.

    Args:
        model: a transformers DSA model in evaluation mode; a switch on it is all full.
        site_layers: absolute ids of its sites.
        windows: token ids, more than are selected; the last token of each is only a label.
        segments: any number of them, overlapping or not.
        settings: rows and seed are read.
        memory: bytes for what is stored; by default a quarter of what is free.
        on_layer: called with the number of each layer that all windows have passed.

    Raises:
        ModelError: a family that is not known here, or an indexer of other numbers than are trained.
        WindowError: a window in which no query chooses.
        MeasurementError: there is no room for what is to be stored.
        SettingError: a segment that the model does not have, or no window or segment.
    """
    if not windows or not segments:
        raise SettingError("there is nothing to distil: no window or no segment was given")
    return Collection(model, site_layers, segments, settings.rows, settings.seed, memory).run(windows, on_layer)


def train(
    model: Any,
    stored: StoredRows,
    segment: Segment,
    settings: Settings,
    on_step: Callable[[int, float], None] = lambda step, divergence: None,
) -> Trained:
    """Trains the indexer of ``segment`` against the mean attention of the layers that it serves.

    The loss is KL(mean attention || softmax of the indexer's scores) over all keys up to the query. AdamW without
    decay, gradients clipped to a norm of 1, warm-up over a tenth of the steps, then a cosine to a tenth of it.
    The model's weights are neither read nor changed, and students of other segments have no part in it. The same
    seed gives the same parameters on the same device.

    Args:
        model: that ``stored`` was collected from.
        stored: rows of windows.
        segment: one that rows were collected for, or one made of parts of them.
        settings: how.
        on_step: called after each step with its number, from 1 on, and its mean divergence; not for the probe's.

    Raises:
        SettingError: nothing is stored for the segment.
        MeasurementError: the divergence is no number any more.
    """
    stored.check(segment)
    run = _Training(model, stored, segment, settings)
    rate = settings.learning_rate or run.probed_rate()
    student, curve = run.student(), []
    since: list[float] = []
    every = max(1, settings.steps // _CURVE_POINTS)
    for step, divergence in enumerate(run.steps(student, rate, settings.steps, range(stored.windows)), 1):
        if not math.isfinite(divergence):
            raise MeasurementError(
                f"the divergence of the indexer at site {segment.site} is NaN or infinite after {step} steps",
                hint=f"lower the learning rate, which is {rate:g}",
            )
        since.append(divergence)
        if step % every == 0 or step == settings.steps:
            curve.append((step, sum(since) / len(since)))
            since = []
        on_step(step, divergence)
    return Trained({name: value.detach().cpu() for name, value in student.parameters.items()}, tuple(curve), rate)


def probed_rate(model: Any, stored: StoredRows, segment: Segment, settings: Settings) -> float:
    """The learning rate that a short probe of ``RATES`` gives for ``segment``; arguments as for ``train``."""
    stored.check(segment)
    return _Training(model, stored, segment, settings).probed_rate()


def divergence(
    model: Any, stored: StoredRows, segment: Segment, parameters: Mapping[str, torch.Tensor] | None = None
) -> float:
    """Mean KL(mean attention || softmax of the scores) in nats a row, over all stored windows.

    Args:
        model: that ``stored`` was collected from.
        stored: rows, best of windows that were not trained on.
        segment: as for ``train``.
        parameters: of the indexer; those that the model had at collection by default.
    """
    stored.check(segment)
    run = _Training(model, stored, segment, Settings())
    return run.mean_divergence(run.student(parameters), range(stored.windows))


def put(model: Any, site: int, parameters: Mapping[str, torch.Tensor]) -> Callable[[], None]:
    """Sets the parameters of a site's indexer in the loaded ``model``, in the model's dtype.

    A layer that comes and goes has them from its next sweep on.

    Args:
        model: any loaded DSA model.
        site: number of the site among the model's.
        parameters: all of the indexer's, by name.

    Returns:
        What gives the ones before back.

    Raises:
        ModelError: names or shapes are not the indexer's, or its weights are elsewhere.
    """
    _, indexers = find_indexers(model, decoder_layers(model))
    layer, indexer = list(indexers.items())[site]
    slots = dict(indexer.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in slots.items()}
    if shapes != {name: tuple(value.shape) for name, value in parameters.items()}:
        raise ModelError(f"the parameters for site {site} are not those of the indexer in layer {layer}")
    stream = stream_of(model)
    if stream is not None and stream.brings(layer):
        prefix = next(name for name, module in model.named_modules() if module is indexer)
        return stream.replace(layer, {f"{prefix}.{name}": value for name, value in parameters.items()})
    if any(slot.is_meta for slot in slots.values()):
        raise ModelError(
            f"the weights of layer {layer} are fetched by transformers for each call, so that none can be set",
            hint="leave --device-map out: layers come and go without it too",
        )
    before = {name: slot.data for name, slot in slots.items()}
    for name, slot in slots.items():
        slot.data = parameters[name].to(slot.device, slot.dtype)

    def give_back() -> None:
        for name, slot in slots.items():
            slot.data = before[name]

    return give_back


class _Training:
    """One segment's training."""

    def __init__(self, model: Any, stored: StoredRows, segment: Segment, settings: Settings) -> None:
        _, indexers = find_indexers(model, decoder_layers(model))
        self._code = IndexerCode(list(indexers.values())[segment.site])
        self._stored, self._segment, self._settings = stored, segment, settings
        self._site = stored.sites[segment.site]
        self._budget = ChunkBudget(*CHUNKS)

    def student(self, parameters: Mapping[str, torch.Tensor] | None = None) -> Student:
        """A student with ``parameters``, by default the indexer's own."""
        return Student(self._code, parameters or self._site.parameters, self._site.device, self._budget)

    def steps(self, student: Student, rate: float, steps: int, windows: Sequence[int]) -> Iterator[float]:
        """Trains, and gives each step's mean divergence."""
        leaves = list(student.parameters.values())
        optimizer = torch.optim.AdamW(leaves, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        draw = torch.Generator().manual_seed(self._settings.seed)
        order: list[int] = []
        for step in range(steps):
            while len(order) < self._settings.windows_a_step:
                order += [windows[place] for place in torch.randperm(len(windows), generator=draw).tolist()]
            batch, order = order[: self._settings.windows_a_step], order[self._settings.windows_a_step :]
            rows = sum(len(self._site.windows[window].rows) for window in batch)
            totals = [
                student.learn(self._site.windows[window], self._stored.target(self._segment, window), 1 / rows)
                for window in batch
            ]
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps)
            optimizer.step()
            optimizer.zero_grad()
            yield float(torch.stack(totals).sum()) / rows

    def mean_divergence(self, student: Student, windows: Sequence[int]) -> float:
        """In nats a row."""
        total, rows = 0.0, 0
        for window in windows:
            inputs = self._site.windows[window]
            total += float(student.divergence(inputs, self._stored.target(self._segment, window)))
            rows += len(inputs.rows)
        return total / rows

    def probed_rate(self) -> float:
        """The rate of ``RATES`` that gives the lowest divergence after a tenth of the steps.

        Judged on a quarter of the windows that the probe does not train on; of a single window on itself.
        """
        windows = range(self._stored.windows)
        apart = max(1, len(windows) // 4)
        learned, judged = (windows[:-apart], windows[-apart:]) if len(windows) > 1 else (windows, windows)
        steps = max(_PROBE_LEAST, int(_PROBE_SHARE * self._settings.steps))
        results = {}
        for rate in RATES:
            student = self.student()
            for _ in self.steps(student, rate, steps, learned):
                pass
            results[rate] = self.mean_divergence(student, judged)
        finite = {rate: result for rate, result in results.items() if math.isfinite(result)}
        return min(finite, key=finite.__getitem__) if finite else RATES[0]


def schedule(step: int, steps: int) -> float:
    """The part of the highest rate at ``step`` of ``steps``: a tenth of them up, then a cosine to a tenth."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))
