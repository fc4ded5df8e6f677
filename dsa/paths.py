"""Keeps the states of the pattern in force between layers, so that candidates start where they differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..pattern import Pattern


@dataclass(frozen=True)
class State:
    """What enters a layer: hidden states ``[1, tokens, ...]`` and the last full site's selection."""

    hidden: torch.Tensor
    selection: Any

    @property
    def bytes(self) -> int:
        """Memory that the tensors take."""
        tensors = [each for each in (self.hidden, self.selection) if isinstance(each, torch.Tensor)]
        return sum(each.numel() * each.element_size() for each in tensors)


@dataclass(frozen=True)
class Path:
    """The states of one window under one pattern, by the layer they enter."""

    pattern: Pattern
    states: dict[int, State]


@dataclass
class PathMemory:
    """Paths of the pattern in force and of the one measured last, per window, within a memory budget.

    Args:
        site_layers: absolute ids of the layers at which patterns can differ, ascending.
        windows: how many windows will be kept.
        budget: bytes for all paths together; as many layers are kept as fit, spread evenly.
    """

    site_layers: Sequence[int]
    windows: int
    budget: int
    _base: dict[Hashable, Path] = field(default_factory=dict)
    _latest: dict[Hashable, Path] = field(default_factory=dict)
    _kept_layers: frozenset[int] | None = None

    def wants(self, layer: int, state: State) -> bool:
        """Whether ``state``, entering ``layer``, is to be kept; all states are taken to be as large."""
        if self._kept_layers is None:
            self._kept_layers = self._choose(state.bytes)
        return layer in self._kept_layers

    def find(self, window: Hashable, patterns: Sequence[Pattern]) -> tuple[int, State] | None:
        """The deepest kept layer that all ``patterns`` enter in the same known state."""
        return max(self._known(window, patterns), key=lambda each: each[0], default=None)

    def keep(self, window: Hashable, pattern: Pattern, states: dict[int, State], start: int) -> None:
        """Keeps the path of ``pattern``: ``states`` from layer ``start`` on, earlier ones as already known."""
        known = {layer: state for layer, state in self._known(window, [pattern]) if layer <= start}
        self._latest[window] = Path(pattern, known | states)
        self._base.setdefault(window, self._latest[window])

    def follow(self, pattern: Pattern) -> None:
        """``pattern`` is in force from now on: the candidates to come are made from it."""
        for window, path in self._latest.items():
            if path.pattern == pattern:
                self._base[window] = path

    def _known(self, window: Hashable, patterns: Sequence[Pattern]) -> Iterator[tuple[int, State]]:
        """Kept states that all ``patterns`` go through, with the layers they enter."""
        for path in (self._base.get(window), self._latest.get(window)):
            if path is None:
                continue
            agreed = min(_agreement(path.pattern, pattern) for pattern in patterns)
            # The layer at which they first differ is still entered in the same state.
            differ = self.site_layers[agreed] if agreed < len(self.site_layers) else None
            for layer, state in path.states.items():
                if differ is None or layer <= differ:
                    yield layer, state

    def _choose(self, state_bytes: int) -> frozenset[int]:
        # Two paths a window at worst, though they share what comes before they differ.
        count = self.budget // max(1, 2 * self.windows * state_bytes)
        layers = self.site_layers[1:]
        if count >= len(layers):
            return frozenset(layers)
        return frozenset(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))


def _agreement(one: Pattern, other: Pattern) -> int:
    """How many leading sites have the same role."""
    for site, (a, b) in enumerate(zip(one.roles, other.roles, strict=True)):
        if a != b:
            return site
    return len(one)
