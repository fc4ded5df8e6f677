"""Answers evaluations from what the journal holds, has the rest measured piece by piece, and writes that down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...evaluate import Model, PatternWindowLosses, Request, WindowLoss
from ...pattern import Pattern
from ...system.signals import check_stop
from ..cost import LayerCount
from .records import JournalContent


class MissingLoss(Exception):
    """A loss that the journal does not hold was asked for, and there is no model to measure it."""


WriteLosses = Callable[[str, bool, Sequence[int], Sequence[Pattern], Sequence[Sequence[WindowLoss]]], None]
"""Writes losses down: group, last_token, windows, patterns and the sums ``[patterns][windows]``."""


class ReplayedEvaluator:
    """Measures patterns as ``Evaluate`` says, each on each window once in all the sessions of a run.

    Args:
        content: what the journal holds; what is measured is added to it.
        count: counts the sweeps and layers that the evaluations asked for take.
        model: measures what is missing; None where nothing may be.
        write: writes down what was measured.
        on_known: called with the number of losses that need not be measured.
    """

    def __init__(
        self,
        content: JournalContent,
        count: LayerCount,
        model: Model | None = None,
        write: WriteLosses = lambda group, last_token, windows, patterns, sums: None,
        on_known: Callable[[int], None] = lambda losses: None,
    ) -> None:
        self._content = content
        self._model = model
        self._write = write
        self._on_known = on_known
        self.count = count
        self.window_evaluations = 0
        """Pattern x window pairs asked for so far, measured now or before."""

    def __call__(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """What each request asks for; what is missing of all of them is measured together.

        Raises:
            MissingLoss: a loss is not known, and there is no model.
        """
        self.count.sweep(requests)
        self.window_evaluations += sum(len(request.patterns) * len(request.windows) for request in requests)
        if lacking := [part for request in requests for part in self._lacking(request)]:
            self._measure(lacking)
        return [self._losses(request) for request in requests]

    def follow(self, pattern: Pattern) -> None:
        """Patterns measured from now on are mostly made from ``pattern``."""
        self.count.follow(pattern)
        if self._model is not None:
            self._model.follow(pattern)

    def _known(self, request: Request) -> list[dict[int, WindowLoss]]:
        """What is known of each of a request's patterns, by window."""
        known = self._content.losses.setdefault((request.group, request.last_token), {})
        return [known.setdefault(str(pattern), {}) for pattern in request.patterns]

    def _losses(self, request: Request) -> PatternWindowLosses:
        return [tuple(losses[number] for number in request.windows) for losses in self._known(request)]

    def _lacking(self, request: Request) -> list[Request]:
        """What of a request is not known: windows that lack the same patterns are measured together."""
        lacking: dict[tuple[Pattern, ...], list[int]] = {}
        patterns_known = list(zip(request.patterns, self._known(request), strict=True))
        for number in request.windows:
            missing = tuple(pattern for pattern, losses in patterns_known if number not in losses)
            lacking.setdefault(missing, []).append(number)
        self._on_known(
            sum((len(patterns_known) - len(missing)) * len(alike) for missing, alike in lacking.items())
        )
        return [
            request._replace(patterns=tuple(dict.fromkeys(missing)), windows=alike)
            for missing, alike in lacking.items()
            if missing
        ]

    def _measure(self, requests: Sequence[Request]) -> None:
        """Measures and keeps ``requests`` piece by piece, so that a kill costs one piece at most."""
        if self._model is None:
            raise MissingLoss
        for piece in self._model.pieces(requests):
            check_stop()
            for request, sums in zip(piece, self._model.sweep(piece), strict=True):
                for known, measured in zip(self._known(request), sums, strict=True):
                    known.update(zip(request.windows, measured, strict=True))
                patterns, windows, group, last_token = request
                self._write(group, last_token, windows, patterns, sums)  # a stop that waited is raised here
