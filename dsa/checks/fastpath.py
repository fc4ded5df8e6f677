"""Tries, before a search, whether the code for long windows runs and computes what the model's own does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...errors import ModelError
from ..long.backends import Backends, install
from ..long.indexers import ROWS
from ..long.scores import is_distinct
from ..model.losses import input_device
from ..model.stack import LayerCalls, Stack, State
from ..model.switch import Switch
from .finite import not_finite

# How far off a position may be, as a part of what the layer adds to its hidden state; and the share of positions
# that may be further off, as rounding sends some tokens to other experts and chooses otherwise between keys that
# score alike.
_OFF = {torch.float32: 0.01, torch.float64: 1e-3}
_COARSE_OFF = 0.1
_STRAY_POSITIONS = 0.1
# How many selected keys may differ: as a share of those selected, and of those in which a random choice would
# differ. The second bound is the lower one where a window is hardly longer than the selection: there even the
# worst choice has most keys right.
_OTHER_KEYS = {torch.float32: (0.01, 0.05), torch.float64: (0.01, 0.05)}
_COARSE_OTHER_KEYS = (0.1, 0.3)
# In all rows of a layer together, for windows in which hardly any query chooses.
_STRAY_KEYS = 2


def check_fast_path(
    model: torch.nn.Module, site_layers: Sequence[int], width: int, backends: Backends, token_ids: Sequence[int]
) -> None:
    """Sends a window through every layer twice, by the model's own code and by ``backends``.

    Both start from the same states, so that rounding does not add up over layers. The indexers' rows are
    divided so that there are two chunks at least, and queries that choose in more than one. The model is
    left as it was.

    Args:
        model: as loaded, with nothing put on it.
        site_layers: absolute ids of its sites.
        width: keys that a query selects.
        backends: what is to run.
        token_ids: of the window: the real one, or as much of it as the model's own code has memory for.

    Raises:
        ModelError: says which layer, and what differs.
    """
    if backends == Backends():
        return
    tokens = len(token_ids)
    rows = min(ROWS, max(1, tokens - max(1, (tokens - width) // 2)))
    _FastPathCheck(model, site_layers, width, backends, rows).run(token_ids)


@dataclass(frozen=True)
class _LayerOutput:
    """What leaves a layer, the selection in force there, and how often sparse attention ran in it."""

    hidden: torch.Tensor
    selection: Any
    carried: Any
    attended: int


class _FastPathCheck:
    def __init__(self, model: Any, site_layers: Sequence[int], width: int, backends: Backends, rows: int) -> None:
        self._model, self._sites, self._width = model, tuple(site_layers), width
        self._backends, self._rows = backends, rows
        switch = Switch(model, site_layers)
        self._stack_name = switch.stack_name
        self._stack = Stack(model, self._stack_name)
        switch.remove()

    @torch.inference_mode()
    def run(self, token_ids: Sequence[int]) -> None:
        sweep = self._stack.sweep()
        try:
            ids = torch.tensor([list(token_ids)], device=input_device(self._model))
            calls = self._stack.record(ids)
            self._dtype = calls.hidden.dtype
            fast_calls = self._fast(lambda: self._stack.record(ids))
            if not calls.hidden.isfinite().all():
                raise not_finite("its embedding produces NaN or infinity", self._model, "", self._dtype)
            state = State(calls.hidden)
            for layer in sweep:
                state = self._compared(layer, state, calls, fast_calls)
        except (RuntimeError, MemoryError):
            # Other processes go on, and need this one's part of the weights.
            for _ in sweep:
                pass
            raise

    def _compared(self, layer: int, state: State, calls: LayerCalls, fast_calls: LayerCalls) -> State:
        """What leaves ``layer`` by the model's own code, once the other was held against it."""
        stock = self._layer(layer, state, calls)
        if not stock.hidden.isfinite().all():  # no fault of the backends, which could not agree with it
            raise self._not_finite(layer)
        fast = self._fast(partial(self._layer, layer, state, fast_calls))
        self._check_taken(layer, fast)
        if layer in self._sites:
            self._check_selection(layer, fast.selection, stock.selection)
        self._check_hidden(layer, state.hidden, fast.hidden, stock.hidden)
        return State(stock.hidden, stock.selection, stock.carried)

    def _not_finite(self, layer: int) -> ModelError:
        what, module = f"layer {layer} produces NaN or infinity", self._stack.layers[layer]
        return not_finite(what, module, f"{self._stack_name}.{layer}", self._dtype)

    def _fast(self, work: Callable[[], Any]) -> Any:
        remove = install(self._model, self._backends, rows=self._rows)
        try:
            return work()
        finally:
            remove()

    def _layer(self, layer: int, state: State, calls: LayerCalls) -> _LayerOutput:
        switch = Switch(self._model, self._sites)
        try:
            switch.selection = state.selection
            hidden, carried = self._stack.run_layer(layer, state, calls)
            return _LayerOutput(hidden, switch.selection, carried, self._attended(layer))
        finally:
            switch.remove()

    def _attended(self, layer: int) -> int:
        attention = getattr(self._stack.layers[layer], "self_attn", None)
        return int(getattr(getattr(attention, "expand_kv", None), "attended", 0))

    def _check_taken(self, layer: int, fast: _LayerOutput) -> None:
        # A backend that is passed by would agree with the model's own code, and save no memory.
        if self._backends.attention == "sparse" and not fast.attended:
            raise ModelError(f"layer {layer} does not take the sparse attention that was to run")
        if self._backends.indexer == "chunked" and layer in self._sites and not is_distinct(fast.selection):
            raise ModelError(f"the indexer of layer {layer} does not run in chunks, though it was to")

    def _check_selection(self, layer: int, fast: Any, stock: Any) -> None:
        """Where queries choose, both are to select the same keys."""
        if fast.shape != stock.shape:
            raise ModelError(f"layer {layer} selects {tuple(fast.shape)} keys in chunks, not {tuple(stock.shape)}")
        fast_keys, stock_keys = (keys[:, self._width :].sort(dim=-1).values for keys in (fast, stock))
        if not fast_keys.numel():
            return
        # Rows are sorted: a key that both select stands where a search for it ends.
        place = torch.searchsorted(stock_keys, fast_keys).clamp(max=stock_keys.shape[-1] - 1)
        differing, selected = int((stock_keys.gather(-1, place) != fast_keys).sum()), fast_keys.numel()
        at_random = len(fast_keys) * _differing_at_random(self._width, fast.shape[1])
        of_selected, of_random = _OTHER_KEYS.get(self._dtype, _COARSE_OTHER_KEYS)
        if differing > min(of_selected * selected, of_random * at_random) + _STRAY_KEYS:
            raise ModelError(
                f"{differing / selected:.1%} of the keys that layer {layer} selects in chunks are not its own; "
                f"of keys chosen at random {at_random / selected:.1%} would not be"
            )

    def _check_hidden(self, layer: int, entering: torch.Tensor, fast: torch.Tensor, stock: torch.Tensor) -> None:
        added = (stock - entering).float().flatten(2).norm(dim=-1)
        off = (fast - stock).float().flatten(2).norm(dim=-1)
        # Not "off > ...": what is no number is wrong too.
        wrong = ~(off <= _OFF.get(self._dtype, _COARSE_OFF) * added.clamp(min=1e-6))
        choosing = wrong[:, self._width :] if wrong.shape[1] > self._width else wrong
        # The positions that choose are judged apart too: those that do not could outnumber them.
        for part in (wrong, choosing):
            share = float(part.float().mean())
            if share > _STRAY_POSITIONS:
                backends = f"{self._backends.indexer} indexers and {self._backends.attention} attention"
                raise ModelError(
                    f"with {backends}, layer {layer} gives other hidden states than the model's own code "
                    f"at {share:.0%} of {part.shape[1]} positions"
                )


def _differing_at_random(width: int, tokens: int) -> float:
    """Keys in which two random choices of ``width`` differ, on average and in all rows of a window together.

    Row t sees t + 1 keys; of ``width`` keys chosen among them, another such choice lacks width * (t + 1 - width) /
    (t + 1). Rows that see no more than ``width`` keys cannot differ.
    """
    return sum(width * (seen - width) / seen for seen in range(width + 1, tokens + 1))
