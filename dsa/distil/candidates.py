"""Students for the patterns of a search, made when they are first needed, and the evaluator that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from ...evaluate import PatternWindowLosses, Request
from ...pattern import DistilledPattern, Pattern
from ...system import processes
from ...system.signals import check_stop
from ..model.evaluator import Evaluator
from .losses import DistilledLosses
from .rows import StoredRows
from .segments import Segment
from .train import Settings, probed_rate, train

# Sites of the segment whose learning rate all students have.
_PROBED_SITES = 4


def single_sites(sites: int) -> list[Segment]:
    """What rows are collected for so that students of all segments of ``sites`` sites can be trained from them."""
    return [Segment(site, site + 1) for site in range(sites)]


class Students:
    """Indexers distilled for segments, made as they are asked for, and kept.

    A student depends on the rows, the settings and its segment, and on no other student. So whichever a run asks
    for first, and however often it begins anew, they are the same on the same device.

    Args:
        model: that ``stored`` was collected from.
        stored: rows for all sites, see ``single_sites``.
        settings: of each student; without a learning rate, one is probed for all of them.
        on_making: called with how many are made, before they are.
    """

    def __init__(
        self,
        model: Any,
        stored: StoredRows,
        settings: Settings,
        on_making: Callable[[int], None] = lambda students: None,
    ) -> None:
        self._model, self._stored, self._settings, self._on_making = model, stored, settings, on_making
        self.parameters: dict[Segment, dict[str, torch.Tensor]] = {}
        """Of all students so far, by segment and then by name in the indexer, fp32 on the CPU."""

    def make(self, segments: Iterable[Segment]) -> None:
        """Trains students of those of ``segments`` that have none; processes call alike and share them out.

        Raises:
            Stop: a signal came.
            MeasurementError: the divergence is no number any more.
        """
        waiting = sorted({*segments} - self.parameters.keys())
        if not waiting:
            return
        self._on_making(len(waiting))
        mine = range(processes.process_index(), len(waiting), processes.process_count())
        made = processes.merge({number: self._trained(waiting[number]) for number in mine})
        self.parameters |= {waiting[number]: parameters for number, parameters in made.items()}

    def _trained(self, segment: Segment) -> dict[str, torch.Tensor]:
        trained = train(self._model, self._stored, segment, self._rated, lambda step, divergence: check_stop())
        return trained.parameters

    @cached_property
    def _rated(self) -> Settings:
        """The settings with a learning rate."""
        if self._settings.learning_rate is not None:
            return self._settings
        sites = len(self._stored.sites)
        first = max(0, (sites - _PROBED_SITES) // 2)
        segment = Segment(first, min(sites, first + _PROBED_SITES))
        rate = probed_rate(self._model, self._stored, segment, self._settings)
        return replace(self._settings, learning_rate=rate)


class StudentEvaluator(Evaluator):
    """Losses of patterns, each measured with the students of its segments in the place of the model's indexers.

    All full, which everything is compared with, has no segment that serves others: it is the model as it is.

    Args:
        students: made for whatever patterns are asked for.
        losses: reads the students' parameters.
        settings: of ``Evaluator``.
    """

    def __init__(self, students: Students, losses: DistilledLosses, *settings: Any, **named: Any) -> None:
        super().__init__(losses, *settings, **named)
        self._students = students

    def sweep(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """The losses that each request asks for, under its patterns with the students of their segments."""
        asked = {pattern for request in requests if request.windows for pattern in request.patterns}
        self._students.make(Segment(*ends) for pattern in asked for ends in pattern.serving)
        return super().sweep(
            [request._replace(patterns=list(map(_as_run, request.patterns))) for request in requests]
        )

    def follow(self, pattern: Pattern) -> None:
        """Patterns measured from now on are mostly made from ``pattern``: its states are worth keeping."""
        super().follow(_as_run(pattern))


def _as_run(pattern: Pattern) -> Pattern:
    """``pattern`` with distilled indexers wherever one serves others too; itself where none does."""
    distilled = DistilledPattern.of(pattern)
    return distilled if distilled.distilled else pattern
