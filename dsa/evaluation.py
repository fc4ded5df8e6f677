"""Evaluates patterns on groups of windows, over all processes, and counts what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..pattern import Pattern
from . import processes
from .losses import PatternLosses


class Evaluator:
    """Losses of patterns on named groups of windows.

    Args:
        losses: the model to measure.
        groups: token ids ``[windows, length]`` by the group's name.
        on_window: called with the number of patterns each time one window is measured here.
    """

    def __init__(
        self,
        losses: PatternLosses,
        groups: Mapping[str, Sequence[Sequence[int]]],
        on_window: Callable[[int], None] = lambda patterns: None,
    ) -> None:
        self._losses = losses
        self._groups = groups
        self._on_window = on_window
        self.evaluations = 0
        """Patterns measured so far, one per pattern and call."""
        self.window_evaluations = 0
        """Pattern x window pairs measured so far, over all processes."""

    def __call__(self, patterns: Sequence[Pattern], group: str, reverse: bool = False) -> list[tuple[float, ...]]:
        """Each pattern's summed losses in nats, one per window of ``group``, in the windows' order.

        Every process measures its share of the windows and returns the whole.

        Args:
            patterns: what to measure.
            group: the name of the windows.
            reverse: measure the windows in the opposite order, to see what the order does to the losses.
        """
        windows = processes.shard(self._groups[group])
        measured = []
        for window in reversed(windows) if reverse else windows:
            measured.append(self._losses.measure(patterns, window))
            self._on_window(len(patterns))
        per_window = processes.gather(measured[::-1] if reverse else measured)
        self.evaluations += len(patterns)
        self.window_evaluations += len(patterns) * len(per_window)
        return [tuple(losses[index] for losses in per_window) for index in range(len(patterns))]

    def layer_windows(self) -> int:
        """Decoder-layer executions so far, one per layer, window and branch, over all processes."""
        return sum(processes.gather([self._losses.layer_runs]))
