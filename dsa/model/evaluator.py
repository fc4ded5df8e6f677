"""Evaluates patterns on groups of windows, over all processes, and counts what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

import torch

from ...errors import MeasurementError
from ...evaluate import CALIBRATION, PatternWindowLosses, Request, WindowLoss
from ...pattern import Pattern
from ...system import processes
from ..chunks import out_of_memory
from .agreement import selection_overlap
from .costs import layer_costs
from .losses import PatternLosses
from .tail import Window

# Of calibration, on which layer costs are measured.
COST_WINDOWS = 4


class Evaluator:
    """Losses of patterns on named groups of windows.

    Args:
        losses: the model to measure.
        groups: windows by the group's name, each named by the group and its number.
        max_rows: how many rows, windows times patterns, go through the layers together at most.
        on_window: called with the number of patterns each time one window is measured here.
        on_shortage: called with a line for the user when memory runs out.
    """

    def __init__(
        self,
        losses: PatternLosses,
        groups: Mapping[str, Sequence[Window]],
        max_rows: int = 1 << 30,
        on_window: Callable[[int], None] = lambda patterns: None,
        on_shortage: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._losses = losses
        self._groups = groups
        self._max_rows = max_rows
        self._on_window = on_window
        self._on_shortage = on_shortage

    def __call__(
        self,
        patterns: Sequence[Pattern],
        group: str,
        windows: Sequence[int] | None = None,
        last_token: bool = False,
    ) -> PatternWindowLosses:
        """Each pattern's summed losses, one per window, in the order asked for.

        Every process measures its share of the windows and returns the whole.

        Args:
            patterns: what to measure.
            group: the name of the windows.
            windows: which of them, by number and in this order; all by default.
            last_token: measure in another shape, to see what rounding does (see ``PatternLosses.measure``).
        """
        numbers = range(len(self._groups[group])) if windows is None else windows
        share = self._share(numbers, processes.process_index())
        measured: dict[int, tuple[WindowLoss, ...]] = {}
        for portion in self._sweeps(share, len(patterns)):
            measured.update(zip(portion, self._sweep(patterns, group, portion, last_token), strict=True))
        losses = processes.merge(measured)
        return [tuple(losses[number][index] for number in numbers) for index in range(len(patterns))]

    def sweep(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """The losses that each request asks for, request after request."""
        return [self(patterns, group, windows, last_token) for patterns, windows, group, last_token in requests]

    def pieces(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """``requests`` in portions: whole where weights are fetched for each sweep, else a window on each process.

        The portions are alike on all processes.
        """
        if self._losses.offloaded:
            yield requests
            return
        together = range(processes.process_count())
        for request in requests:
            shares = [self._share(request.windows, process) for process in together]
            for numbers in zip_longest(*shares):
                yield [request._replace(windows=[number for number in numbers if number is not None])]

    def follow(self, pattern: Pattern) -> None:
        """Patterns measured from now on are mostly made from ``pattern``: its states are worth keeping."""
        if self._losses.memory is not None:
            self._losses.memory.follow(pattern)

    def overlap(self, group: str, selection_width: int) -> list[list[float]]:
        """The share of keys that two sites select alike, ``[sites][sites]``, on the windows of ``group``."""
        return selection_overlap(
            self._losses, [window.token_ids for window in self._groups[group]], selection_width
        )

    def layer_costs(self, group: str, surrogate: str) -> list[list[list[float]]]:
        """What each site suffers under earlier sites' selections, ``[windows][sites][sites]``, see ``costs``.

        Measured on the first few windows of ``group``: pairs of sites differ by far more than windows do.
        """
        windows = [window.token_ids for window in self._groups[group][:COST_WINDOWS]]
        measured = layer_costs(self._losses.model, self._losses.switch, windows, surrogate, self._losses.blind)
        return [[list(row) for row in matrix] for matrix in measured.windows]

    def layer_windows(self) -> int:
        """Decoder-layer executions so far, one per layer, window and branch, over all processes."""
        return sum(processes.merge({processes.process_index(): self._losses.layer_runs}).values())

    def weight_bytes(self) -> int:
        """Bytes of weights that came to the devices so far, over all processes; 0 where they lie there."""
        return 0

    def _share(self, numbers: Sequence[int], process: int) -> list[int]:
        """Windows that ``process`` measures: always the same ones, so that it may remember their states."""
        return [number for number in numbers if number % processes.process_count() == process]

    def _sweeps(self, numbers: Sequence[int], patterns: int) -> Iterator[Sequence[int]]:
        """Windows that go through the layers together: many where weights are fetched for each sweep."""
        together = max(1, self._max_rows // patterns) if self._losses.offloaded else 1
        for first in range(0, len(numbers), together):
            yield numbers[first : first + together]

    def _sweep(
        self, patterns: Sequence[Pattern], group: str, numbers: Sequence[int], last_token: bool
    ) -> list[tuple[WindowLoss, ...]]:
        windows = [self._groups[group][number] for number in numbers]
        window_losses: list[list[WindowLoss]] = [[] for _ in numbers]
        # What is left over of many patterns, or of held-out windows, is not what candidates start from.
        keep = group == CALIBRATION and len(patterns) == 1
        first = 0
        while first < len(patterns):
            portion = patterns[first : first + self._max_rows]
            measured = self._measure(portion, windows, last_token, keep)
            if measured is None:  # the next turn takes fewer patterns
                continue
            for losses, portion_losses in zip(window_losses, measured, strict=True):
                losses.extend(portion_losses)
            self._on_window(len(portion) * len(numbers))
            first += len(portion)
        return [tuple(losses) for losses in window_losses]

    def _measure(
        self, patterns: Sequence[Pattern], windows: Sequence[Window], last_token: bool, keep: bool
    ) -> list[list[WindowLoss]] | None:
        """None if memory ran out: fewer rows are then carried together from now on.

        Raises:
            MeasurementError: not even one row fits.
        """
        try:
            return self._losses.compare(patterns, windows, last_token, keep)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(patterns) == len(windows) == 1:
                raise MeasurementError(
                    f"out of memory on a window of {len(windows[0].token_ids)} tokens",
                    hint="lower --window, or spread the model with --device-map auto",
                ) from error
        torch.cuda.empty_cache()
        if len(patterns) > 1:
            self._max_rows = len(patterns) // 2
            self._on_shortage(f"out of memory: going on with {self._max_rows} patterns at a time")
            return None
        self._max_rows = max(1, len(windows) // 2)
        self._on_shortage(f"out of memory: going on with {self._max_rows} windows at a time")
        halves = (windows[: self._max_rows], windows[self._max_rows :])
        measured = [self._measure(patterns, half, last_token, keep) for half in halves]
        return [losses for half_losses in measured for losses in half_losses or []]
