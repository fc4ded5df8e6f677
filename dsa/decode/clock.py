"""Measures how long a model takes for one output token under patterns, behind a cache of a given length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ...pattern import Pattern
from ..caches import CacheArgument, cache_in
from ..model.prefill import indexers_timed, now
from ..model.switch import Switch
from .cache import FilledCache

# Steps before a CUDA graph is captured: kernels are compiled and memory is reserved in them.
_STEPS_BEFORE_CAPTURE = 2


@dataclass(frozen=True)
class Decode:
    """Steps of one output token for each of ``batch`` sequences.

    Args:
        seconds: of the median step.
        least: of the fastest run's mean step.
        most: of the slowest run's.
        indexer_share: of the median step's time, in indexers; None where steps are replayed as a CUDA graph.
    """

    seconds: float
    least: float
    most: float
    indexer_share: float | None


class DecodeClock:
    """Times decode steps of one model, each from the same filled cache.

    A shared site runs no indexer and writes no index keys, by the same switch that ``apply`` puts on a model.
    Token, cache and positions are the same in each step, so that on a GPU the step can be captured once as a CUDA
    graph and replayed, as engines do; where it cannot be captured, kernels are launched one by one.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
        latent: whether its attention reads latent keys, which then lie side by side in the cache.
    """

    def __init__(self, model: nn.Module, site_layers: Sequence[int], latent: bool) -> None:
        self._model, self._latent = model, latent
        self._cache_name = CacheArgument(model.forward, "the model").name
        self._switch = Switch(model, site_layers)
        home = next(model.parameters()).device
        # Weights kept elsewhere are on the meta device until a hook fetches them; ids start on the CPU then.
        self._device = torch.device("cpu") if home.type == "meta" else home
        self.is_graph = self._device.type == "cuda"
        """Whether steps are replayed as CUDA graphs; turned off by the first that cannot be captured."""
        self.is_random = True
        """Whether the last cache was filled with keys drawn at random, and not by a prefill."""

    @torch.inference_mode()
    def time(
        self, patterns: Sequence[Pattern], tokens: Sequence[int], batch: int, repeats: int, steps: int
    ) -> list[Decode]:
        """Steps that follow ``tokens`` under each pattern: the median of ``repeats`` runs of ``steps`` steps.

        The patterns take turns, so that what changes meanwhile (clocks, other programs) befalls them alike.

        Args:
            patterns: over the sites.
            tokens: of one sequence; the cache is filled with as many, and the step's token is one more.
            batch: sequences of them.
            repeats: runs of each pattern, after one that warms up.
            steps: in each.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self._device).repeat(batch, 1)
        try:
            self._switch.use(Pattern.all_full(len(patterns[0])))
            cache = FilledCache(self._forward, ids, self._latent)
            self.is_random = cache.is_random
            works = self._works(patterns, cache, ids[:, -1:].contiguous())
            runs: list[list[_Run]] = [[] for _ in patterns]
            for turn in range(repeats + 1):
                for work, pattern_runs in zip(works, runs, strict=True):
                    run = self._run(work, steps if turn else 1)
                    if turn:
                        pattern_runs.append(run)
        finally:
            self._switch.use(Pattern.all_full(len(patterns[0])))
            self._switch.forget()
        return [_decode(pattern_runs) for pattern_runs in runs]

    def close(self) -> None:
        """Gives the model its own forwards back."""
        self._switch.remove()

    def _forward(self, ids: torch.Tensor, cache: Any) -> Any:
        given = {} if cache is None else {str(self._cache_name): cache}
        return cache_in(self._model(input_ids=ids, use_cache=True, logits_to_keep=1, **given))

    def _works(self, patterns: Sequence[Pattern], cache: FilledCache, token: torch.Tensor) -> list[_Work]:
        """A step under each pattern, captured where that can be: all of them or none, so that they compare."""

        def step_under(pattern: Pattern) -> Callable[[Any], None]:
            def step(filled: Any) -> None:
                self._switch.use(pattern)
                self._forward(token, filled)
                self._switch.forget()

            return step

        steps = [step_under(pattern) for pattern in patterns]
        graphs = []
        for step in steps:
            self.is_graph = self.is_graph and cache.is_random
            graph = _captured(partial(_from_filled, step, cache)) if self.is_graph else None
            self.is_graph = graph is not None
            graphs.append(graph)
        if self.is_graph:
            return [_Work(graph=graph) for graph in graphs]
        return [_Work(cache.rewind, step) for step in steps]

    def _run(self, work: _Work, steps: int) -> _Run:
        """The mean of ``steps`` steps; going back to the filled cache is not counted."""
        seconds = 0.0
        if work.graph is not None:
            start = now()
            for _ in range(steps):
                work.graph.replay()
            return _Run((now() - start) / steps, None)
        with indexers_timed(self._model) as indexer_seconds:
            for _ in range(steps):
                filled = work.rewind()
                start = now()
                work.step(filled)
                seconds += now() - start
        return _Run(seconds / steps, indexer_seconds() / seconds)


def _from_filled(step: Callable[[Any], None], cache: FilledCache) -> None:
    step(cache.rewind())


def _nothing(*filled: Any) -> None: ...


@dataclass(frozen=True)
class _Work:
    """A step: ``rewind`` gives a filled cache, ``step`` takes it; or ``graph`` is both."""

    rewind: Callable[[], Any] = _nothing
    step: Callable[[Any], None] = _nothing
    graph: torch.cuda.CUDAGraph | None = None


@dataclass(frozen=True)
class _Run:
    """The mean step of a run, in seconds, and what of it indexers take."""

    seconds: float
    indexer_share: float | None


def _decode(runs: Sequence[_Run]) -> Decode:
    ordered = sorted(runs, key=lambda run: run.seconds)
    # The lower median of an even number: each figure is of a run that was made.
    median = ordered[(len(ordered) - 1) // 2]
    return Decode(median.seconds, ordered[0].seconds, ordered[-1].seconds, median.indexer_share)


def _captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """``step`` as a CUDA graph; None where something in it waits for the GPU, which no graph can hold."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_STEPS_BEFORE_CAPTURE):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph
