"""Losses of windows under many patterns at once, running what the patterns have in common only once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...pattern import Pattern
from ..chunks import ChunkBudget
from .paths import PathMemory
from .stack import LayerCalls, Stack, State
from .switch import Switch

# Logits of as many positions are made at a time as take about this many bytes in fp32. A GPU gets more:
# there a call of the model's tail takes longer to launch than to compute.
_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU = 256 << 20, 1 << 30
_MOST_LOGITS_ROWS = 2048


@dataclass(frozen=True)
class Window:
    """A window to measure: a name to remember it by, and its token ids."""

    name: Hashable
    token_ids: Sequence[int]


@dataclass(frozen=True)
class _Row:
    """A window in a state that several patterns share so far: they agree on every site passed.

    Args:
        window: position of the window in the sweep.
        members: positions of those patterns in the list that was asked for.
        state: what enters the next layer.
    """

    window: int
    members: tuple[int, ...]
    state: State


class PatternLosses:
    """Measures LM losses of a model under patterns, layer by layer.

    Patterns that agree on all sites up to a layer have the same states there, so the patterns of one
    call form a tree: it branches where they differ, and each branch runs once. The candidates of a
    greedy step differ in one site each and so cost about half of what separate runs would. All rows
    of a sweep go through a layer before the next one, so that its weights are used once a sweep.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
        blind: leading positions of a window whose loss no pattern can change, as their queries see no
            more keys than are selected; their logits are made once a window, of all full, so that no loss
            depends on what was measured before it.
        memory: where to keep the states of the pattern in force; none are kept without.
    """

    def __init__(
        self, model: nn.Module, site_layers: Sequence[int], blind: int = 0, memory: PathMemory | None = None
    ) -> None:
        self.switch = Switch(model, site_layers)
        self._stack = Stack(model, self.switch.stack_name)
        self._site_of = {layer: site for site, layer in enumerate(site_layers)}
        self._device = input_device(model)
        self.dtype: torch.dtype = next(self._stack.layers[0].parameters()).dtype
        """What the layers compute in."""
        self._logits_budget = ChunkBudget(_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU)
        self._blind = blind
        self._blind_loss: dict[Hashable, float] = {}
        self.memory = memory
        self.layer_runs = 0
        """Decoder-layer executions so far, one per layer, window and branch."""

    @torch.inference_mode()
    def measure(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        last_token: bool = False,
        keep_states: bool = True,
    ) -> list[list[float]]:
        """Each window's summed cross entropy in nats under each pattern, accumulated in fp64.

        Args:
            patterns: over the model's sites.
            windows: measured in one sweep; a window's n tokens have n - 1 labels.
            last_token: also run each window's last token, which serves as a label only and whose states
                reach no other; the same losses in other shapes, without anything remembered.
            keep_states: of a single pattern, where there is a memory; others may start from them.
        """
        ids = [self._ids(window) for window in windows]
        full = Pattern.all_full(len(self._site_of))
        unknown = [window for window in windows if window.name not in self._blind_loss]
        if unknown and self._blind and not last_token and full not in patterns:
            self.measure([full], unknown, keep_states=False)
        try:
            return self._sweep(patterns, windows, ids, last_token, keep_states and len(patterns) == 1)
        finally:
            # Whatever happened, the model is left all full and holds on to no selection.
            self.switch.share_only(None)
            self.switch.forget()

    def _sweep(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        ids: Sequence[torch.Tensor],
        last_token: bool,
        keep_states: bool,
    ) -> list[list[float]]:
        memory = None if last_token else self.memory
        calls = [self._stack.record(tokens if last_token else tokens[:, :-1]) for tokens in ids]
        entering: dict[int, list[_Row]] = {}
        for index, (window, call) in enumerate(zip(windows, calls, strict=True)):
            for start, row in _first_rows(index, window, patterns, State(call.hidden), memory):
                entering.setdefault(start, []).append(row)
        states_to_keep: list[dict[int, State]] = [{} for _ in windows]
        rows: list[_Row] = []
        for layer in range(len(self._stack)):
            rows += entering.get(layer, [])
            if memory is not None and keep_states:
                for row in rows:
                    if memory.wants(layer, row.state):
                        states_to_keep[row.window][layer] = row.state
            rows = [
                self._run(layer, row, full, calls[row.window])
                for parent in rows
                for full, row in self._split(layer, parent, patterns)
            ]
        if memory is not None and keep_states:
            for window, states in zip(windows, states_to_keep, strict=True):
                memory.keep(window.name, patterns[0], states)
        losses = [[0.0] * len(patterns) for _ in windows]
        # All full comes first, as its row gives the window's blind loss: other rows' differ by rounding, where
        # experts group tokens.
        all_full = {member for member, pattern in enumerate(patterns) if pattern.kept == len(pattern)}
        for row in sorted(rows, key=lambda row: all_full.isdisjoint(row.members)):
            name = None if last_token else windows[row.window].name
            loss = self._loss(row.state.hidden, name, ids[row.window])
            for member in row.members:
                losses[row.window][member] = loss
        return losses

    @torch.inference_mode()
    def selections(self, window: Window) -> list[Any]:
        """What each site selects when all are full, in the family's own form: mostly ``[1, tokens, width]``."""
        calls = self._stack.record(self._ids(window)[:, :-1])
        state, selections = State(calls.hidden), []
        for layer in range(len(self._stack)):
            state = self._through(layer, state, True, calls)
            if layer in self._site_of:
                selections.append(state.selection)
        self.switch.forget()
        return selections

    @property
    def offloaded(self) -> bool:
        """Whether weights come from CPU memory or disk for each sweep, so that few sweeps pay."""
        return any(weight.device.type == "meta" for layer in self._stack.layers for weight in layer.parameters())

    @torch.inference_mode()
    def logits(self, pattern: Pattern, window: Window, positions: int) -> torch.Tensor:
        """Logits ``[1, positions, vocabulary]`` of a window's last positions under ``pattern``."""
        ids = self._ids(window)
        calls = self._stack.record(ids)
        state = State(calls.hidden)
        for layer in range(len(self._stack)):
            site = self._site_of.get(layer)
            state = self._through(layer, state, site is None or pattern.is_full(site), calls)
        self.switch.share_only(None)
        self.switch.forget()
        return self._stack.logits(state.hidden[:, -positions:], ids[:, -positions:])

    def _ids(self, window: Window) -> torch.Tensor:
        return torch.as_tensor(window.token_ids, dtype=torch.long, device=self._device).unsqueeze(0)

    def _split(self, layer: int, row: _Row, patterns: Sequence[Pattern]) -> Iterator[tuple[bool, _Row]]:
        """``row`` by the role that its patterns give ``layer``: (runs its indexer, row)."""
        site = self._site_of.get(layer)
        if site is None:
            yield True, row
            return
        for full in (True, False):
            members = tuple(member for member in row.members if patterns[member].is_full(site) is full)
            if members:
                yield full, _Row(row.window, members, row.state)

    def _run(self, layer: int, row: _Row, full: bool, calls: LayerCalls) -> _Row:
        return _Row(row.window, row.members, self._through(layer, row.state, full, calls))

    def _through(self, layer: int, state: State, full: bool, calls: LayerCalls) -> State:
        """What leaves ``layer``, run full or shared, when ``state`` enters it."""
        self.layer_runs += 1
        self.switch.selection = state.selection
        self.switch.share_only(None if full else layer)
        hidden, carried = self._stack.run_layer(layer, state, calls)
        return State(hidden, self.switch.selection, carried)

    def _loss(self, hidden: torch.Tensor, window: Hashable | None, ids: torch.Tensor) -> float:
        """Summed cross entropy of a window's labels; a named window's blind positions are measured once."""
        blind = min(self._blind, ids.shape[1] - 1)
        if window is None:
            return self._cross_entropy(hidden, ids, 0, ids.shape[1] - 1)
        if window not in self._blind_loss:
            self._blind_loss[window] = self._cross_entropy(hidden, ids, 0, blind)
        return self._blind_loss[window] + self._cross_entropy(hidden, ids, blind, ids.shape[1] - 1)

    def _cross_entropy(self, hidden: torch.Tensor, ids: torch.Tensor, first: int, end: int) -> float:
        """Of positions ``first`` to ``end - 1``; never holds the whole ``[tokens, vocabulary]`` matrix."""
        sums: list[float] = []

        def measure(start: int, stop: int) -> torch.Tensor:
            logits = self._stack.logits(hidden[:, start:stop], ids[:, start:stop])[0].float()
            labels = ids[0, start + 1 : stop + 1].to(logits.device)
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            sums.append(float(losses.cpu().double().sum()))
            return logits

        def work(start: int, stop: int) -> None:
            measure(first + 1 + start, first + 1 + stop)

        if first < end:
            probe = measure(first, first + 1)  # says how large the vocabulary is, and where logits are
            least = self._logits_budget.bytes(probe.device) // _MOST_LOGITS_ROWS
            self._logits_budget.run(end - first - 1, max(4 * probe.shape[-1], least), probe.device, work)
        return sum(sums)


def input_device(model: Any) -> torch.device:
    """Where token ids go: to the embedding's device, or the CPU where accelerate's hooks move them."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def _first_rows(
    index: int, window: Window, patterns: Sequence[Pattern], embedded: State, memory: PathMemory | None
) -> Iterator[tuple[int, _Row]]:
    """Where each pattern has to begin, with what is known of it: (layer, row); ``embedded`` enters layer 0."""
    starts = [(memory and memory.find(window.name, pattern)) or (0, embedded) for pattern in patterns]
    groups: dict[tuple[int, int], list[int]] = {}
    for member, (layer, state) in enumerate(starts):
        groups.setdefault((layer, id(state)), []).append(member)
    for (layer, _), members in groups.items():
        yield layer, _Row(index, tuple(members), starts[members[0]][1])
