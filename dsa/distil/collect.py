"""One sweep over all layers, all full, that stores what students learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from ...errors import IndexcacheError, ModelError, WindowError
from ..checkpoint.families import FAMILIES, Family, family_of, text_config
from ..checkpoint.sites import expected_indexers
from ..chunks import ChunkBudget
from ..long.capacity import free_memory
from ..long.indexers import indexer_call
from ..model.losses import input_device
from ..model.stack import LayerCalls, Stack, State
from ..model.states.parking import ParkedState, Parking
from ..model.switch import Switch
from ..overrides import Overrides
from .rows import SiteRows, StoredRows, chosen_rows, home, pieces_of, stored_bytes
from .segments import Segment, served_layers
from .students import inputs_of
from .targets import mean_attention, watched_attention

# A chunk of attention or of scores, on a CPU and on a GPU.
CHUNKS = (64 << 20, 512 << 20)
_SHARE_OF_MEMORY = 0.25


def trainable_family(model: Any) -> Family:
    """The family of ``model``.

    Raises:
        ModelError: it is none whose indexers can be trained here; says which it is.
    """
    family = family_of(model.config)
    if family is None or not family.selects_tokens:
        known = ", ".join(name for name, entry in FAMILIES.items() if entry.selects_tokens)
        kind = text_config(model.config).model_type
        raise ModelError(
            f"indexers of {kind} cannot be distilled"
            + ("" if family is None else f": they select {family.selects}, not single tokens"),
            hint=f"families whose indexers can: {known}",
        )
    return family


class Collection:
    """Collects rows of windows for some segments.

    Args:
        model: a transformers DSA model, gradients off; a switch on it is all full.
        site_layers: absolute ids of its sites.
        segments: to be trained.
        rows: queries of a window.
        seed: of their choice.
        memory: bytes for what is stored; by default a quarter of what is free.
    """

    def __init__(
        self,
        model: Any,
        site_layers: Sequence[int],
        segments: Sequence[Segment],
        rows: int,
        seed: int,
        memory: int | None = None,
    ) -> None:
        family = trainable_family(model)
        text = text_config(model.config)
        self._model, self._site_layers, self._segments = model, tuple(site_layers), tuple(segments)
        self._width, self._hidden = family.selection_width(text), int(text.hidden_size)
        self._row_count, self._seed, self._memory = rows, seed, memory
        shared = family.shared_layers(text)
        for segment in segments:
            served_layers(segment, site_layers, shared)  # refused before anything runs
        self._pieces = {piece: served_layers(piece, site_layers, shared) for piece in pieces_of(segments)}
        self._piece_of = {layer: piece for piece, layers in self._pieces.items() for layer in layers}
        self._site_of = {site_layers[segment.site]: segment.site for segment in segments}
        self._device = input_device(model)
        self._budget = ChunkBudget(*CHUNKS)

    @torch.no_grad()
    def run(self, windows: Sequence[Sequence[int]], on_layer: Callable[[int], None]) -> StoredRows:
        """What ``windows``, token ids, give; see ``train.collect``."""
        rows = [self._rows(number, ids) for number, ids in enumerate(windows)]
        switch = Switch(self._model, self._site_layers)
        try:
            self._switch, self._stack = switch, Stack(self._model, switch.stack_name)
            _, self._indexers = expected_indexers(self._model, self._site_layers)
            stored = StoredRows(
                self._segments,
                {},
                {piece: len(layers) for piece, layers in self._pieces.items()},
                {piece: [] for piece in self._pieces},
                sum(len(ids) - 1 for ids in windows),
            )
            self._sweep(windows, rows, stored, on_layer)
        finally:
            switch.remove()
        return stored

    def _rows(self, number: int, ids: Sequence[int]) -> torch.Tensor:
        tokens = len(ids) - 1  # the last token is a label only
        if tokens <= self._width:
            raise WindowError(
                f"window {number} has {len(ids)} tokens, but an indexer that selects {self._width} has to choose "
                f"from {self._width + 2} on",
                hint=f"use windows of more than {self._width + 1} tokens",
            )
        return chosen_rows(tokens, self._width, self._row_count, self._seed, number)

    def _place(self, windows: Sequence[Sequence[int]], rows: Sequence[torch.Tensor]) -> torch.device:
        needed = stored_bytes(
            [len(ids) - 1 for ids in windows], [len(part) for part in rows],
            len(set(self._site_of)), len(self._pieces), self._hidden, self._element_size,
        )  # fmt: skip
        places = dict.fromkeys((self._device, torch.device("cpu")))
        free = {
            place: int(_SHARE_OF_MEMORY * free_memory(place)) if self._memory is None else self._memory
            for place in places
        }
        return home(self._device, needed, free)

    @property
    def _element_size(self) -> int:
        parameter = next(self._stack.layers[0].parameters())
        return parameter.dtype.itemsize

    def _sweep(
        self,
        windows: Sequence[Sequence[int]],
        rows: Sequence[torch.Tensor],
        stored: StoredRows,
        on_layer: Callable[[int], None],
    ) -> None:
        sweep = self._stack.sweep()
        try:
            self._home = self._place(windows, rows)
            parking = Parking(self._device, int(_SHARE_OF_MEMORY * free_memory(self._device)))
            calls: list[LayerCalls] = []
            waiting: list[tuple[int, ParkedState]] = []
            for ids in windows:
                call = self._stack.record(torch.as_tensor([list(ids)[:-1]], device=self._device))
                waiting.append((len(calls), parking.park(State(call.hidden))))
                calls.append(call.without_hidden)
            for layer in sweep:
                left = []
                for (number, _), state in parking.states(waiting, lambda entry: entry[1]):
                    leaving = self._through(layer, number, state, calls[number], rows[number], stored)
                    left.append((number, parking.park(leaving)))
                waiting = left
                on_layer(layer)
        except (RuntimeError, MemoryError, IndexcacheError):
            # Other processes go on, and need this one's part of the weights.
            for _ in sweep:
                pass
            raise

    def _through(
        self, layer: int, window: int, state: State, calls: LayerCalls, rows: torch.Tensor, stored: StoredRows
    ) -> State:
        """What leaves ``layer`` of a window; stores what students need of it."""
        site = self._site_of.get(layer)
        attention: Any = getattr(self._stack.layers[layer], "self_attn", None)
        with ExitStack() as watched:
            inputs = watched.enter_context(_watched_indexer(self._indexers.get(layer)))
            attended = watched.enter_context(watched_attention(attention))
            self._switch.selection = state.selection
            hidden, carried = self._stack.run_layer(layer, state, calls)
        if site is not None:
            self._keep_inputs(site, layer, inputs, rows, stored)
        if layer in self._piece_of:
            if len(attended) != 1:
                raise ModelError(
                    f"layer {layer} called its attention {len(attended)} times through transformers' interface, "
                    "not once",
                    hint="this release of transformers is not known here; see the versions in pyproject.toml",
                )
            self._add_attention(layer, window, mean_attention(attended[0], rows, self._budget), stored)
        return State(hidden, self._switch.selection, carried)

    def _keep_inputs(
        self, site: int, layer: int, calls: list[dict[str, Any]], rows: torch.Tensor, stored: StoredRows
    ) -> None:
        indexer = self._indexers[layer]
        entry = stored.sites.get(site)
        if entry is None:
            parameters = _parameters(indexer, layer)
            entry = stored.sites[site] = SiteRows(parameters, next(iter(parameters.values())).device)
        inputs = inputs_of(indexer, calls[0], rows)
        same = entry.windows[0] if entry.windows else None
        kept = inputs._replace(
            hidden=inputs.hidden.to(self._home, copy=True),
            latent=None if inputs.latent is None else inputs.latent.to(self._home),
        )
        # Positions are those of the length: windows of one length share them.
        if same is not None and len(same.hidden) == len(kept.hidden):
            kept = kept._replace(positions=same.positions, position_ids=same.position_ids)
        entry.windows.append(kept)

    def _add_attention(self, layer: int, window: int, mean: torch.Tensor, stored: StoredRows) -> None:
        """Adds a layer's attention to that of its piece."""
        piece = self._piece_of[layer]
        parts, dtype = stored.attention[piece], torch.float32 if self._element_size > 2 else torch.bfloat16
        if layer == self._pieces[piece][0]:
            parts.append(mean.to(self._home, dtype))  # windows come in the same order in every layer
        else:
            parts[window] = (parts[window].to(mean.device).float() + mean).to(self._home, dtype)


@contextmanager
def _watched_indexer(indexer: nn.Module | None) -> Iterator[list[dict[str, Any]]]:
    """Within it, the arguments of every call of ``indexer``, by name."""
    calls: list[dict[str, Any]] = []
    with Overrides() as overrides:
        if indexer is not None:
            # Of the class: what overrides it names no arguments.
            names = indexer_call(MethodType(type(indexer).forward, indexer))

            def watching(stock_forward: Callable[..., Any]) -> Callable[..., Any]:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    calls.append(names.bound(args, kwargs))
                    return stock_forward(*args, **kwargs)

                return forward

            overrides.replace(indexer, "forward", watching)
        yield calls


def _parameters(indexer: nn.Module, layer: int) -> dict[str, torch.Tensor]:
    """fp32 copies of an indexer's parameters, where they are.

    Raises:
        ModelError: they are no plain numbers.
    """
    parameters = {name: value.detach() for name, value in indexer.named_parameters()}
    for name, value in parameters.items():
        if value.is_meta or value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            kind = "not in memory" if value.is_meta else str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name} of the indexer of layer {layer} is {kind}, which cannot be trained",
                hint="load a copy of the checkpoint in bfloat16, without a device map",
            )
    return {name: value.float().clone() for name, value in parameters.items()}
