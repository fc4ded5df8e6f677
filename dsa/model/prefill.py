"""Measures how long a prefill takes under patterns, and what of it the indexers take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...pattern import Pattern
from ..checkpoint.sites import find_indexers
from ..overrides import Overrides
from .switch import Switch


@dataclass(frozen=True)
class Prefill:
    """One prefill.

    Args:
        seconds: of one forward over the whole sequence, the last position's logits included.
        indexer_seconds: of that, in indexers.
    """

    seconds: float
    indexer_seconds: float

    @property
    def indexer_share(self) -> float:
        """The part of the time that indexers take."""
        return self.indexer_seconds / self.seconds


class PrefillClock:
    """Times prefills of one model.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
    """

    def __init__(self, model: nn.Module, site_layers: Sequence[int]) -> None:
        self._model = model
        self._switch = Switch(model, site_layers)
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def time(self, patterns: Sequence[Pattern], token_ids: Sequence[int], repeats: int = 3) -> list[Prefill]:
        """The median of ``repeats`` prefills of one sequence under each pattern, after one that warms up.

        The patterns take turns, so that what changes meanwhile (clocks, memory) befalls them alike.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        # Weights kept elsewhere are on the meta device until a hook fetches them; ids start on the CPU then.
        device = torch.device("cpu") if self._device.type == "meta" else self._device
        ids = torch.as_tensor(token_ids, dtype=torch.long, device=device).unsqueeze(0)
        runs: list[list[Prefill]] = [[] for _ in patterns]
        try:
            # Turn 0 warms up: kernels are compiled and memory is reserved in it.
            for turn in range(repeats + 1):
                for pattern, pattern_runs in zip(patterns, runs, strict=True):
                    self._switch.use(pattern)
                    run = self._run(ids)
                    if turn:
                        pattern_runs.append(run)
        finally:
            self._switch.use(Pattern.all_full(len(patterns[0])))
            self._switch.forget()
        # The lower median of an even number: each figure is of a prefill that was run.
        middle = (repeats - 1) // 2
        return [sorted(pattern_runs, key=lambda run: run.seconds)[middle] for pattern_runs in runs]

    def close(self) -> None:
        """Gives the model its own forwards back."""
        self._switch.remove()

    def _run(self, ids: torch.Tensor) -> Prefill:
        with indexers_timed(self._model) as indexer_seconds:
            start = now()
            self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
            seconds = now() - start
        return Prefill(seconds, indexer_seconds())


def now() -> float:
    """Seconds on a clock that is read when all devices have done what they were told."""
    # A call returns once its kernels are launched; the clock is read when they have run.
    for device in range(torch.cuda.device_count()):
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def indexers_timed(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Gives what sums up the seconds spent in indexers meanwhile; on a GPU nothing waits for its events."""
    spans: list[tuple[Any, Any]] = []

    def mark(device: torch.device) -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    def seconds(start: Any, end: Any) -> float:
        return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3)

    def timed(stock_forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            start = mark(hidden_states.device)
            out = stock_forward(hidden_states, *args, **kwargs)
            spans.append((start, mark(hidden_states.device)))
            return out

        return forward

    with Overrides() as overrides:
        for module in find_indexers(model)[1].values():
            overrides.replace(module, "forward", timed)
        yield lambda: sum(seconds(*span) for span in spans)
