"""Measures how long a prefill takes under patterns, and what of it the indexers take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..pattern import Pattern
from .switch import Switch, find_indexers, restore


@dataclass(frozen=True)
class Prefill:
    """Medians over repetitions.

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
    def time(self, pattern: Pattern, token_ids: Sequence[int], repeats: int = 3) -> Prefill:
        """The median of ``repeats`` prefills of one sequence under ``pattern``, after one that warms up.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        device = torch.device("cpu") if self._device.type == "meta" else self._device
        ids = torch.as_tensor(token_ids, dtype=torch.long, device=device).unsqueeze(0)
        self._switch.use(pattern)
        try:
            self._run(ids)
            runs = [self._run(ids) for _ in range(repeats)]
        finally:
            self._switch.use(Pattern.all_full(len(pattern)))
            self._switch.forget()
        return Prefill(statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs))

    def close(self) -> None:
        """Gives the model its own forwards back."""
        self._switch.remove()

    def _run(self, ids: torch.Tensor) -> tuple[float, float]:
        with _indexers_timed(self._model, ids.device) as indexer_seconds:
            began = _now(ids.device)
            self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
            seconds = _now(ids.device) - began
        return seconds, indexer_seconds()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _indexers_timed(model: nn.Module, device: torch.device) -> Iterator[Callable[[], float]]:
    """Gives what sums up the seconds spent in indexers meanwhile; on a GPU nothing waits for its events."""
    spans: list[tuple[Any, Any]] = []

    def mark() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def total() -> float:
        if device.type == "cuda":
            return sum(float(begun.elapsed_time(ended)) for begun, ended in spans) / 1e3
        return sum(float(ended - begun) for begun, ended in spans)

    def timed(own_forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            begun = mark()
            out = own_forward(*args, **kwargs)
            spans.append((begun, mark()))
            return out

        return forward

    indexers = list(find_indexers(model)[1].values())
    overridden = [each.__dict__.get("forward") for each in indexers]
    for module in indexers:
        module.forward = timed(module.forward)
    try:
        yield total
    finally:
        for module, own in zip(indexers, overridden, strict=True):
            restore(module, "forward", own)
