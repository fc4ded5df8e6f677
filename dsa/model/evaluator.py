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
from .losses import Asked, PatternLosses
from .tail import Predictions, Window

WindowPatternLosses = dict[int, tuple[WindowLoss, ...]]
"""Of each window, by number, the losses under all patterns that were asked for."""
# Of calibration, on which layer costs are measured.
COST_WINDOWS = 4


class Evaluator:
    """Losses of patterns on named groups of windows.

    Args:
        losses: the model to measure.
        groups: windows by the group's name, each named by the group and its number.
        max_rows: how many patterns of a window go through the layers together at most.
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
        return self.sweep([Request(patterns, numbers, group, last_token)])[0]

    def sweep(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """The losses that each request asks for, in one pass over the weights where those come for each sweep."""
        rank = processes.process_index()
        shares = [request._replace(windows=self._share(request.windows, rank)) for request in requests]
        measured = self._together(shares) if self._losses.streams else list(map(self._one_by_one, shares))
        merged = processes.merge({rank: measured})
        losses = [
            {window: values for part in merged.values() for window, values in part[number].items()}
            for number in range(len(requests))
        ]
        return [
            [tuple(of[number][index] for number in request.windows) for index in range(len(request.patterns))]
            for request, of in zip(requests, losses, strict=True)
        ]

    def predictions(
        self, patterns: Sequence[Pattern], windows: Sequence[Sequence[int]], positions: Sequence[int], top: int
    ) -> list[Predictions]:
        """What each pattern predicts after some positions of each of ``windows``, in their order.

        Args:
            patterns: all different.
            windows: token ids; of no group.
            positions: of each window, ascending; not its last.
            top: of a pattern's likeliest tokens, how many are candidates.

        Raises:
            MeasurementError: memory ran out.
        """
        rank, together = processes.process_index(), self._losses.streams
        share = self._share(range(len(windows)), rank)
        measured: list[Predictions] = []
        # A process without windows sweeps too, as the others may need its part of the weights.
        for numbers in [share] if together else [[number] for number in share]:
            asked = [Window(number, windows[number]) for number in numbers]
            try:
                measured += self._losses.predictions(patterns, asked, positions, top)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise _shortage(Asked(patterns, asked)) from error
            self._on_window(len(patterns) * len(numbers))
        merged = processes.merge({rank: dict(zip(share, measured, strict=True))})
        by_window = {number: given for part in merged.values() for number, given in part.items()}
        return [by_window[number] for number in range(len(windows))]

    def pieces(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """``requests`` in portions: whole where weights come for each sweep, else a window on each process.

        The portions are alike on all processes.
        """
        if self._losses.streams:
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

    def weight_bytes(self) -> int:
        """Bytes of weights that came to devices so far, over all processes."""
        return sum(processes.merge({processes.process_index(): self._losses.weight_bytes}).values())

    def layer_windows(self) -> int:
        """Decoder-layer executions so far, one per layer, window and branch, over all processes."""
        return sum(processes.merge({processes.process_index(): self._losses.layer_runs}).values())

    def _share(self, numbers: Sequence[int], process: int) -> list[int]:
        """Windows that ``process`` measures: always the same ones, so that it may remember their states."""
        return [number for number in numbers if number % processes.process_count() == process]

    def _together(self, requests: Sequence[Request]) -> list[WindowPatternLosses]:
        """All of ``requests`` in one sweep, and those with last tokens in another.

        A process without windows sweeps too, as the others may need its part of the weights.

        Raises:
            MeasurementError: memory ran out.
        """
        losses: list[WindowPatternLosses] = [{} for _ in requests]
        for last_token in sorted({request.last_token for request in requests}):
            numbers = [number for number, request in enumerate(requests) if request.last_token == last_token]
            asked = [self._asked(requests[number]) for number in numbers]
            try:
                measured = self._losses.compare_all(asked, last_token)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise _shortage(*asked) from error
            for number, window_losses in zip(numbers, measured, strict=True):
                losses[number] = dict(zip(requests[number].windows, map(tuple, window_losses), strict=True))
                self._on_window(len(requests[number].patterns) * len(requests[number].windows))
        return losses

    def _asked(self, request: Request) -> Asked:
        windows = [self._groups[request.group][number] for number in request.windows]
        # What is left over of many patterns, or of held-out windows, is not what candidates start from.
        return Asked(request.patterns, windows, request.group == CALIBRATION and len(request.patterns) == 1)

    def _one_by_one(self, request: Request) -> WindowPatternLosses:
        """The request window by window, with as many patterns at a time as memory allows."""
        patterns, windows, keep_states = self._asked(request)
        losses: WindowPatternLosses = {}
        for number, window in zip(request.windows, windows, strict=True):
            measured: list[WindowLoss] = []
            while len(measured) < len(patterns):
                portion = patterns[len(measured) : len(measured) + self._max_rows]
                asked = Asked(portion, [window], keep_states)
                if (portion_losses := self._portion(asked, request.last_token)) is not None:
                    measured += portion_losses
                    self._on_window(len(portion))
            losses[number] = tuple(measured)
        return losses

    def _portion(self, asked: Asked, last_token: bool) -> list[WindowLoss] | None:
        """None if memory ran out: fewer patterns are then carried together from now on.

        Raises:
            MeasurementError: not even one fits.
        """
        try:
            return self._losses.compare_all([asked], last_token)[0][0]
        except (RuntimeError, MemoryError) as error:
            count = len(asked.patterns)
            if not out_of_memory(error):
                raise
            if count == 1:
                raise _shortage(asked) from error
        torch.cuda.empty_cache()
        self._max_rows = count // 2
        self._on_shortage(f"out of memory: going on with {self._max_rows} patterns at a time")
        return None


def _shortage(*asked: Asked) -> MeasurementError:
    longest = max((len(window.token_ids) for _, windows, _ in asked for window in windows), default=0)
    return MeasurementError(
        f"out of memory on a window of {longest} tokens",
        hint="lower --window, or --max-memory, so that weights leave more room",
    )
