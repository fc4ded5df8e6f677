"""Keeps the states of the pattern in force between layers, so that candidates start where they differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from ....pattern import Pattern
from ..stack import State


@dataclass(frozen=True)
class StatePath:
    """The states of one window under one pattern, by the layer they enter."""

    pattern: Pattern
    states: dict[int, State]


@dataclass
class PathMemory:
    """Paths of the pattern in force and of the last two measured, per window, within a memory budget.

    Two, because the best candidate of a step is mostly measured just before the one that comes second.

    Args:
        site_layers: absolute ids of the layers at which patterns can differ, ascending.
        windows: how many windows will be kept.
        budget: bytes for all paths together; as many layers are kept as fit, spread evenly.
    """

    site_layers: Sequence[int]
    windows: int
    budget: int
    _base: dict[Hashable, StatePath] = field(default_factory=dict)
    _latest: dict[Hashable, tuple[StatePath, ...]] = field(default_factory=dict)
    _kept_layers: frozenset[int] = frozenset()
    _largest: int = 0

    def wants(self, layer: int, state: State) -> bool:
        """Whether ``state``, entering ``layer``, is to be kept; all count as large as the largest seen."""
        if layer not in self.site_layers[1:]:
            return False  # no candidate starts there, and before the first site there is no selection to size
        if state.bytes > self._largest:
            self._largest = state.bytes
            self._kept_layers = self._choose(state.bytes)
        return layer in self._kept_layers

    def find(self, window: Hashable, pattern: Pattern) -> tuple[int, State] | None:
        """The deepest kept layer that ``pattern`` enters in a known state, and that state."""
        return max(self._known(window, pattern), key=lambda entry: entry[0], default=None)

    def keep(self, window: Hashable, pattern: Pattern, states: dict[int, State]) -> None:
        """Keeps the path of ``pattern``: ``states`` as just run, the others as already known."""
        known = dict(self._known(window, pattern)) | states
        # A layer chosen earlier may be chosen no more: a larger state has been met since, and fewer fit.
        path = StatePath(pattern, {layer: state for layer, state in known.items() if layer in self._kept_layers})
        self._latest[window] = (*self._latest.get(window, ())[-1:], path)
        self._base.setdefault(window, path)

    def follow(self, pattern: Pattern) -> None:
        """``pattern`` is in force from now on: the candidates to come are made from it."""
        for window, paths in self._latest.items():
            self._base[window] = next((path for path in paths if path.pattern == pattern), self._base[window])

    def _known(self, window: Hashable, pattern: Pattern) -> Iterator[tuple[int, State]]:
        """Kept states that ``pattern`` goes through, with the layers they enter."""
        base = self._base.get(window)
        for path in (*self._latest.get(window, ()), *([base] if base else [])):
            agreed = path.pattern.common_length(pattern)
            # The layer at which they first differ is still entered in the same state.
            difference = self.site_layers[agreed] if agreed < len(self.site_layers) else None
            for layer, state in path.states.items():
                if difference is None or layer <= difference:
                    yield layer, state

    def _choose(self, state_bytes: int) -> frozenset[int]:
        # At most three paths of a window are held, and a fourth is in the making: they may share no state at all.
        count = self.budget // max(1, 4 * self.windows * state_bytes)
        layers = self.site_layers[1:]
        if count >= len(layers):
            return frozenset(layers)
        # The middles of ``count`` equal parts.
        return frozenset(layers[(2 * part + 1) * len(layers) // (2 * count)] for part in range(count))
