"""What evaluations cost in decoder layers run and in sweeps, counted without a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..evaluate import CALIBRATION, Request
from ..pattern import SHARED, DistilledPattern, Pattern


def times_fewer(algorithm_1: int, spent: int) -> float:
    """How many times the layer-windows ``spent`` Algorithm 1 takes; 1 where there was nothing to do."""
    return algorithm_1 / spent if algorithm_1 and spent else 1.0


def layer_cost_runs(
    surrogate: str, windows: int, layers: int, site_layers: Sequence[int], shared_layers: Collection[int] = ()
) -> int:
    """Layer-windows that measuring layer costs takes, see ``dsa.model.costs``.

    An attention that runs alone under another selection counts as a whole layer, a backward pass as two. With
    ``fisher`` every layer runs forward, again, and backward, and attention under its own selection too.

    Args:
        surrogate: ``error`` or ``fisher``.
        windows: that they are measured on.
        layers: decoder layers of the model.
        site_layers: absolute ids of the model's sites.
        shared_layers: layers that share in the checkpoint itself, which suffer with the site that they follow.
    """
    sources = [sum(site < layer for site in site_layers) for layer in site_layers]
    sources += [max(0, sum(site < layer for site in site_layers) - 1) for layer in shared_layers]
    if surrogate == "fisher":
        return windows * (4 * layers + sum(sources) + len(sources))
    return windows * (layers + sum(sources))


@dataclass(frozen=True)
class Shape:
    """What a search's cost depends on, apart from the losses.

    Args:
        site_layers: absolute ids of the model's sites.
        layers: decoder layers of the model.
        windows: calibration windows.
        heldout: held-out windows.
        refinement: windows of refinement.
        probes: held-out probes.
        mixed_probes: probes that choose, one beside every window of calibration and refinement.
        max_rows: patterns that share a sweep, at most.
        cost_windows: windows that layer costs are measured on, where they are.
        shared_layers: layers that share in the checkpoint itself.
        kept_states: layers at which a window's states are kept, spread evenly; None where they are at every site.
        distils: whether every pattern is measured with indexers distilled for it.
    """

    site_layers: Sequence[int]
    layers: int
    windows: int
    heldout: int
    refinement: int = 0
    probes: int = 0
    mixed_probes: int = 0
    max_rows: int | None = None
    cost_windows: int = 0
    shared_layers: Collection[int] = ()
    kept_states: int | None = None
    distils: bool = False

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Where states are kept that a pattern can start from: as the model's evaluator chooses them."""
        layers, count = tuple(self.site_layers[1:]), self.kept_states
        if count is None or count >= len(layers):
            return layers
        return tuple(layers[(2 * part + 1) * len(layers) // (2 * count)] for part in range(count))


@dataclass(frozen=True)
class SweepRows:
    """What one pass over the layers carries: a row is one window in one state.

    Args:
        windows: that are measured in it.
        full: rows that each layer runs with its indexer, by layer.
        shared: rows that it runs without.
    """

    windows: int
    full: tuple[int, ...]
    shared: tuple[int, ...]

    def times(self, factor: float) -> SweepRows:
        """As many times the windows and the rows."""

        def grown(rows: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(round(factor * count) for count in rows)

        return SweepRows(round(factor * self.windows), grown(self.full), grown(self.shared))


def layer_cost_sweeps(
    surrogate: str, windows: int, layers: int, site_layers: Sequence[int], shared_layers: Collection[int] = ()
) -> list[SweepRows]:
    """The passes that measuring layer costs takes; their rows add up to ``layer_cost_runs``.

    By ``error`` all windows go through the layers together; ``fisher`` takes two passes a window. Any other
    surrogate takes none.
    """
    if surrogate not in ("error", "fisher"):
        return []
    if surrogate == "fisher" and windows > 1:
        return windows * layer_cost_sweeps(surrogate, 1, layers, site_layers, shared_layers)
    sites = set(site_layers)
    alone = [
        windows * max(0, sum(site < layer for site in site_layers) - (layer not in sites))
        if layer in sites or layer in shared_layers
        else 0
        for layer in range(layers)
    ]
    full = tuple(windows if layer in sites else 0 for layer in range(layers))
    rest = [windows - count for count in full]
    if surrogate != "fisher":
        return [SweepRows(windows, full, tuple(map(sum, zip(rest, alone, strict=True))))]
    measured = [windows if layer in sites or layer in shared_layers else 0 for layer in range(layers)]
    # Forward; then, layer by layer from the last, forward again and backward.
    backward = tuple(
        2 * windows + left + runs + once for left, runs, once in zip(rest, alone, measured, strict=True)
    )
    return [SweepRows(windows, full, tuple(rest)), SweepRows(windows, full, backward)]


class LayerCount:
    """Counts sweeps, and the decoder layers that they take where what patterns have in common runs once.

    States are taken to be kept as the model's evaluator keeps them when memory is no limit: of the
    pattern in force and of the last two measured.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._kept_layers = shape.kept_layers
        self._base: dict[int, Pattern] = {}
        self._latest: dict[int, tuple[Pattern, ...]] = {}
        self.layer_windows = 0
        """Layer executions so far."""
        self.shared_layer_windows = 0
        """Those that reused a selection."""
        self._full, self._shared = [0] * shape.layers, [0] * shape.layers
        self.sweeps = 0
        """Passes over the weights so far, all states taken to fit in memory."""
        self.segments: set[tuple[int, int]] = set()
        """Those that indexers had to be distilled for: full site, and first site that it does not serve."""

    def sweep(self, requests: Sequence[Request]) -> SweepRows:
        """Counts what one call of ``Evaluate`` asks for: one pass over the layers."""
        self.sweeps += 1
        for patterns, windows, group, last_token in requests:
            # Held-out windows and runs in another shape start from no states; one pattern alone leaves its states.
            on_path, alone = group == CALIBRATION and not last_token, len(patterns) == 1
            rows = self._shape.max_rows or max(1, len(patterns))
            for first in range(0, len(patterns), rows):
                self.measure(patterns[first : first + rows], windows, on_path, alone)
        measured = {(request.group, number) for request in requests for number in request.windows}
        carried = SweepRows(len(measured), tuple(self._full), tuple(self._shared))
        self._full, self._shared = [0] * self._shape.layers, [0] * self._shape.layers
        return carried

    def measure(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[int],
        remember: bool = True,
        keep_states: bool = True,
    ) -> None:
        """Counts ``patterns`` on calibration windows given by number.

        ``remember`` lets them start from kept states, ``keep_states`` keeps those of a single pattern.
        """
        patterns = list(map(self._as_run, patterns))
        # Windows with kept states of the same patterns cost the same: one of them is counted, and multiplied.
        alike: dict[frozenset[Pattern], int] = {}
        for window in windows:
            known = [self._base[window], *self._latest[window]] if remember and window in self._base else []
            alike[frozenset(known)] = alike.get(frozenset(known), 0) + 1
            if remember and keep_states and len(patterns) == 1:
                self._latest[window] = (*self._latest.get(window, ())[-1:], patterns[0])
                self._base.setdefault(window, patterns[0])
        for states, times in alike.items():
            self._from_known(patterns, states, times)

    def follow(self, pattern: Pattern) -> None:
        """``pattern`` is in force from now on."""
        pattern = self._as_run(pattern)
        self._base |= {window: pattern for window, latest in self._latest.items() if pattern in latest}

    def _as_run(self, pattern: Pattern) -> Pattern:
        """``pattern`` as it is measured: with the indexers distilled for it, where they are."""
        if not self._shape.distils:
            return pattern
        distilled = DistilledPattern.of(pattern)
        self.segments.update(pattern.serving)
        return distilled

    def _from_known(self, patterns: Sequence[Pattern], known: Collection[Pattern], windows: int) -> None:
        """Counts ``patterns`` on ``windows`` windows, of each of which the states of ``known`` are kept."""
        together: dict[tuple[int, str | tuple[str, ...]], list[Pattern]] = {}
        for pattern in patterns:
            start = max((self._common_depth(measured, pattern) for measured in known), default=0)
            passed = sum(layer < start for layer in self._shape.site_layers)
            together.setdefault((start, pattern.path[:passed]), []).append(pattern)
        for (start, _), group in together.items():
            self._below(group, start, windows)

    def _common_depth(self, known: Pattern, pattern: Pattern) -> int:
        """The deepest layer at which a known pattern's states are kept and ``pattern`` has the same."""
        # The layer at which two patterns first differ is still entered in the same state.
        depth = self._shape.site_layers[min(known.common_length(pattern), len(known) - 1)]
        return max((layer for layer in self._kept_layers if layer <= depth), default=0)

    def _below(self, patterns: Sequence[Pattern], start: int, windows: int) -> None:
        """Layers from ``start`` on, each as often as the patterns are in different states there."""
        for layer in range(start, self._shape.site_layers[0]):
            self._add(layer, 0, windows)
        ends = [*self._shape.site_layers[1:], self._shape.layers]
        for site, (first, end) in enumerate(zip(self._shape.site_layers, ends, strict=True)):
            branches = {pattern.path[: site + 1] for pattern in patterns}
            if first >= start:
                indexing = sum(path[-1] != SHARED for path in branches)
                self._add(first, windows * indexing, windows * (len(branches) - indexing))
            # Layers between two sites run no indexer.
            for layer in range(max(start, first + 1), end):
                self._add(layer, 0, windows * len(branches))

    def _add(self, layer: int, full: int, shared: int) -> None:
        """Counts rows of a layer."""
        self._full[layer] += full
        self._shared[layer] += shared
        self.layer_windows += full + shared
        self.shared_layer_windows += shared
