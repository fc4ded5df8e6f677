"""Answers evaluations from what the journal holds, has the rest measured piece by piece, and writes that down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...evaluate import CALIBRATION, Model, WindowLoss
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
        groups: how many windows each group has.
        count: counts the layers that the evaluations asked for take.
        model: measures what is missing; None where nothing may be.
        write: writes down what was measured.
        on_known: called with the number of losses that need not be measured.
    """

    def __init__(
        self,
        content: JournalContent,
        groups: dict[str, int],
        count: LayerCount,
        model: Model | None = None,
        write: WriteLosses = lambda group, last_token, windows, patterns, sums: None,
        on_known: Callable[[int], None] = lambda losses: None,
    ) -> None:
        self._content = content
        self._groups = groups
        self._model = model
        self._write = write
        self._on_known = on_known
        self.count = count
        self.window_evaluations = 0
        """Pattern x window pairs asked for so far, measured now or before."""

    def __call__(
        self,
        patterns: Sequence[Pattern],
        group: str,
        windows: Sequence[int] | None = None,
        last_token: bool = False,
    ) -> list[tuple[WindowLoss, ...]]:
        """Each pattern's summed losses, one per window, in the order asked for.

        Raises:
            MissingLoss: a loss is not known, and there is no model.
        """
        numbers = range(self._groups[group]) if windows is None else windows
        self.window_evaluations += len(patterns) * len(numbers)
        # Held-out windows and runs in another shape start from no states; one pattern alone leaves its states.
        on_path = group == CALIBRATION and not last_token
        self.count.measure(patterns, numbers, remember=on_path, keep_states=len(patterns) == 1)
        known = self._content.losses.setdefault((group, last_token), {})
        losses_of = [known.setdefault(str(pattern), {}) for pattern in patterns]
        # Windows that lack the same patterns are measured together.
        lacking: dict[tuple[Pattern, ...], list[int]] = {}
        for number in numbers:
            missing = tuple(
                pattern for pattern, losses in zip(patterns, losses_of, strict=True) if number not in losses
            )
            lacking.setdefault(missing, []).append(number)
        self._on_known(sum((len(patterns) - len(missing)) * len(alike) for missing, alike in lacking.items()))
        for missing, alike in lacking.items():
            if missing:
                self._measure(tuple(dict.fromkeys(missing)), group, alike, last_token)
        return [tuple(losses[number] for number in numbers) for losses in losses_of]

    def follow(self, pattern: Pattern) -> None:
        """Patterns measured from now on are mostly made from ``pattern``."""
        self.count.follow(pattern)
        if self._model is not None:
            self._model.follow(pattern)

    def _measure(self, patterns: Sequence[Pattern], group: str, windows: Sequence[int], last_token: bool) -> None:
        """Measures and keeps ``patterns`` in pieces of ``windows``, so that a kill costs one piece at most."""
        if self._model is None:
            raise MissingLoss
        for piece in self._model.pieces(windows, len(patterns)):
            check_stop()
            sums = self._model(patterns, group, piece, last_token)
            known = self._content.losses[group, last_token]
            for pattern, losses in zip(patterns, sums, strict=True):
                known[str(pattern)] |= dict(zip(piece, losses, strict=True))
            self._write(group, last_token, piece, patterns, sums)  # a stop that waited for it is raised here
