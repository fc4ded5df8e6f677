"""From the states that leave the last layer to losses, beside all full's, in chunks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...evaluate import WindowLoss
from ..chunks import ChunkBudget
from .objectives import label_losses, window_loss
from .stack import Stack

# Logits of as many positions are made at a time as take about this many bytes in fp32. A GPU gets more:
# there a call of the model's tail takes longer to launch than to compute.
_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU = 256 << 20, 1 << 30
_MOST_LOGITS_ROWS = 2048
NOTHING = WindowLoss(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Window:
    """A window to measure: a name to remember it by, and its token ids.

    Args:
        name: windows of one name are taken to hold the same tokens.
        token_ids: n tokens have n - 1 labels; label t is token t + 1.
        answers: the labels that count, ascending; None for all.
        weighs_keys: whether labels are weighed by what the long context tells of them, too.
    """

    name: Hashable
    token_ids: Sequence[int]
    answers: Sequence[int] | None = None
    weighs_keys: bool = False


class Predictions(NamedTuple):
    """What patterns predict after some positions of a window, in nats.

    ``tokens`` ``[positions, candidates]`` are the union of all patterns' top tokens, ascending, and then -1 where
    a position has fewer than others; ``logprobs`` ``[positions, candidates, patterns]``, NaN there.
    """

    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]

    def picked(self, patterns: Sequence[int]) -> Predictions:
        """The same of ``patterns``, by number and in this order; one of them may stand there often."""
        return Predictions(self.tokens, self.logprobs[:, :, list(patterns)])


class References:
    """The states of all full that leave the last layer, kept in host memory, by window.

    Both sides' logits are made from states a chunk at a time: at 32K tokens of a hidden size of 7168 the states
    take 0.5 GB a window, the logits would take 8 GB.

    Args:
        budget: bytes for all of them; a window whose states find no room is run again when it is needed.
    """

    def __init__(self, budget: int) -> None:
        self._free = budget
        self._states: dict[Hashable, torch.Tensor] = {}

    def of(self, windows: Sequence[Window]) -> dict[Hashable, torch.Tensor]:
        """The states ``[1, tokens, ...]`` of those of ``windows`` whose are kept, by name."""
        return {window.name: self._states[window.name] for window in windows if window.name in self._states}

    def keep(self, name: Hashable, states: torch.Tensor) -> torch.Tensor:
        """Keeps ``states``, if there is room; returns them in host memory either way."""
        if name not in self._states:
            size = states.numel() * states.element_size()
            if size > self._free:
                return states.detach().cpu()
            self._free -= size
            self._states[name] = states.detach().to("cpu", copy=True)
        return self._states[name]


class Tail:
    """The model's final norm and head, applied to some rows of a window.

    Args:
        stack: of the model.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._budget = ChunkBudget(_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU)

    def loss(
        self,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        rows: torch.Tensor,
        reference: torch.Tensor | None = None,
        key_weights: torch.Tensor | None = None,
    ) -> WindowLoss:
        """What the labels of ``rows`` cost together; never holds the whole ``[tokens, vocabulary]`` matrix.

        Args:
            hidden: what leaves the last layer, ``[1, tokens, ...]``.
            ids: of the window, ``[1, tokens]`` and the last label.
            rows: positions whose labels count, ascending.
            reference: all full's ``hidden``, on any device; None leaves the comparison out.
            key_weights: of all labels, ``[labels]``.
        """
        sums: list[WindowLoss] = []

        def work(part: torch.Tensor) -> torch.Tensor:
            logits = self._logits(hidden, ids, part)
            if reference is None:
                other = None
            else:  # all full is its own reference: its logits are made once
                other = logits if reference is hidden else self._logits(reference, ids, part)
            weights = None if key_weights is None else key_weights[part.cpu()]
            sums.append(window_loss(logits, self._labels(ids, part, logits), other, weights))
            return logits

        # A comparison holds eight such matrices: both logits, shares, distances, and what is made of them.
        self._run(rows, work, 1 if reference is None else 8)
        return WindowLoss(*(math.fsum(values) for values in zip(*sums, strict=True))) if sums else NOTHING

    def losses(self, hidden: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The cross entropy of each of ``rows``' labels in nats, in fp32 on the CPU."""
        parts: list[torch.Tensor] = []

        def work(part: torch.Tensor) -> torch.Tensor:
            logits = self._logits(hidden, ids, part)
            parts.append(label_losses(logits, self._labels(ids, part, logits)).cpu())
            return logits

        self._run(rows, work, 1)
        return torch.cat(parts) if parts else torch.empty(0)

    def predictions(
        self, states: Sequence[torch.Tensor], ids: torch.Tensor, rows: torch.Tensor, top: int
    ) -> Predictions:
        """The next tokens that one of ``states`` finds among the ``top`` likeliest, and how likely all find them.

        Args:
            states: what leaves the last layer under a pattern each, ``[1, tokens, ...]``.
            ids: of the window, ``[1, tokens]`` and the last label.
            rows: positions that are asked, ascending.
            top: of each of ``states``.
        """
        tokens: list[torch.Tensor] = []
        logprobs: list[torch.Tensor] = []

        def work(part: torch.Tensor) -> torch.Tensor:
            logits = [self._logits(hidden, ids, part) for hidden in states]
            likeliest = [matrix.topk(min(top, matrix.shape[-1]), dim=-1).indices for matrix in logits]
            union = torch.cat(likeliest, dim=-1).sort(dim=-1).values
            union[:, 1:].masked_fill_(union[:, 1:] == union[:, :-1].clone(), -1)
            union = union.masked_fill(union < 0, logits[0].shape[-1]).sort(dim=-1).values
            is_token = union < logits[0].shape[-1]
            union = union.masked_fill(~is_token, 0)
            given = [
                matrix.log_softmax(-1).gather(-1, union).masked_fill(~is_token, torch.nan) for matrix in logits
            ]
            tokens.append(union.masked_fill(~is_token, -1).cpu())
            logprobs.append(torch.stack(given, dim=-1).cpu())
            return logits[0]

        self._run(rows, work, 3 * len(states))
        if not tokens:
            return Predictions(np.empty((0, 0), np.int64), np.empty((0, 0, len(states)), np.float32))
        all_tokens, all_logprobs = torch.cat(tokens).numpy(), torch.cat(logprobs).numpy()
        most = int((all_tokens >= 0).sum(axis=1).max())
        return Predictions(all_tokens[:, :most].copy(), all_logprobs[:, :most].copy())

    def _logits(self, hidden: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits ``[rows, vocabulary]`` in fp32, where the model makes them."""
        states = hidden.index_select(1, rows.to(hidden.device)).to(ids.device)
        return self._stack.logits(states, ids.index_select(1, rows))[0].float()

    @staticmethod
    def _labels(ids: torch.Tensor, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return ids[0, rows + 1].to(logits.device)

    def _run(self, rows: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor], matrices: int) -> None:
        """Calls ``work``, which holds so many ``[rows, vocabulary]`` matrices, with as many rows as fit."""
        if not len(rows):
            return
        first = work(rows[:1])  # says how large the vocabulary is, and where logits are
        least = self._budget.bytes(first.device) // _MOST_LOGITS_ROWS
        row_bytes = max(4 * matrices * first.shape[-1], least)

        def chunk(start: int, end: int) -> None:
            work(rows[1 + start : 1 + end])

        self._budget.run(len(rows) - 1, row_bytes, first.device, chunk)
