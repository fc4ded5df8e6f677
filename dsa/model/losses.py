"""Losses of windows under many patterns at once, running what the patterns have in common only once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...evaluate import WindowLoss
from ...pattern import Pattern
from .objectives import key_weights, short_pieces
from .paths import PathMemory
from .stack import LayerCalls, Stack, State
from .switch import Switch
from .tail import References, Tail, Window


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
        reference_budget: bytes of host memory for the last states of all full, see ``References``.
    """

    def __init__(
        self,
        model: nn.Module,
        site_layers: Sequence[int],
        blind: int = 0,
        memory: PathMemory | None = None,
        reference_budget: int = 1 << 30,
    ) -> None:
        self.switch = Switch(model, site_layers)
        self._stack = Stack(model, self.switch.stack_name)
        self._tail = Tail(self._stack)
        self._site_of = {layer: site for site, layer in enumerate(site_layers)}
        self._full = Pattern.all_full(len(site_layers))
        self._device = input_device(model)
        self.dtype: torch.dtype = next(self._stack.layers[0].parameters()).dtype
        """What the layers compute in."""
        self.model = model
        self.blind = blind
        self._blind_loss: dict[Hashable, WindowLoss] = {}
        self._references = References(reference_budget)
        self._key_weights: dict[Hashable, torch.Tensor] = {}
        self.memory = memory
        self.layer_runs = 0
        """Decoder-layer executions so far, one per layer, window and branch."""

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
        measured = self._measure(patterns, windows, last_token, keep_states, compares=False)
        return [[loss.loss for loss in losses] for losses in measured]

    def compare(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        last_token: bool = False,
        keep_states: bool = True,
    ) -> list[list[WindowLoss]]:
        """The same losses, and beside them what compares each pattern with all full, which runs once a window."""
        return self._measure(patterns, windows, last_token, keep_states, compares=True)

    @torch.inference_mode()
    def _measure(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        last_token: bool,
        keep_states: bool,
        compares: bool,
    ) -> list[list[WindowLoss]]:
        ids = [self._ids(window) for window in windows]
        try:
            references = self._references.of(windows) if compares else None
            self._run_all_full(patterns, windows, last_token, references)
            if references is not None:
                self._weigh_keys(windows, ids, references)
            return self._sweep(patterns, windows, ids, last_token, keep_states and len(patterns) == 1, references)
        finally:
            # Whatever happened, the model is left all full and holds on to no selection.
            self.switch.share_only(None)
            self.switch.forget()

    def _run_all_full(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        last_token: bool,
        references: dict[Hashable, torch.Tensor] | None,
    ) -> None:
        """Runs all full on the windows of which something is needed that the coming sweep does not give."""
        runs_now = self._full in patterns and not last_token

        def lacks(window: Window) -> bool:
            if references is not None and window.name not in references:
                return not runs_now or window.weighs_keys
            blind = self.blind and window.answers is None and not last_token
            return bool(blind) and not runs_now and window.name not in self._blind_loss

        if unknown := [window for window in windows if lacks(window)]:
            self._sweep([self._full], unknown, [self._ids(window) for window in unknown], False, False, references)

    def _sweep(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        ids: Sequence[torch.Tensor],
        last_token: bool,
        keep_states: bool,
        references: dict[Hashable, torch.Tensor] | None,
    ) -> list[list[WindowLoss]]:
        """Runs all rows through all layers; what is to be compared finds and puts all full in ``references``."""
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
        return self._row_losses(patterns, windows, ids, rows, last_token, references)

    def _row_losses(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        ids: Sequence[torch.Tensor],
        rows: Sequence[_Row],
        last_token: bool,
        references: dict[Hashable, torch.Tensor] | None,
    ) -> list[list[WindowLoss]]:
        """What the rows that left the last layer cost, ``[window][pattern]``."""
        losses = [[WindowLoss(0.0)] * len(patterns) for _ in windows]
        # All full comes first: the others are compared with it, and its row gives the window's blind loss, as
        # other rows' differ by rounding, where experts group tokens.
        all_full = {member for member, pattern in enumerate(patterns) if pattern == self._full}
        for row in sorted(rows, key=lambda row: all_full.isdisjoint(row.members)):
            window, hidden = windows[row.window], row.state.hidden
            reference = None
            if references is not None:
                if not (last_token or all_full.isdisjoint(row.members)):
                    references.setdefault(window.name, hidden)
                    self._references.keep(window.name, hidden)
                reference = references[window.name]
            loss = self._loss(hidden, window, ids[row.window], last_token, reference)
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
        hidden = self._through_all(ids, pattern)
        return self._stack.logits(hidden[:, -positions:], ids[:, -positions:])

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

    def _loss(
        self,
        hidden: torch.Tensor,
        window: Window,
        ids: torch.Tensor,
        last_token: bool,
        reference: torch.Tensor | None,
    ) -> WindowLoss:
        """What a window's labels cost; its blind ones are measured once, of all full, unless ``last_token``."""
        labels = ids.shape[1] - 1
        weights = self._key_weights.get(window.name)
        if window.answers is not None:
            rows = torch.as_tensor(window.answers, device=ids.device)
            return self._tail.loss(hidden, ids, rows, reference, weights)
        rows, blind = torch.arange(labels, device=ids.device), min(self.blind, labels)
        if last_token:
            return self._tail.loss(hidden, ids, rows, reference, weights)
        if window.name not in self._blind_loss:
            alone = self._tail.loss(hidden, ids, rows[:blind])
            self._blind_loss[window.name] = alone._replace(divergence=0.0, key_loss=0.0, agreement=float(blind))
        beyond = self._tail.loss(hidden, ids, rows[blind:], reference, weights)
        return WindowLoss(*map(sum, zip(self._blind_loss[window.name], beyond, strict=True)))

    def _weigh_keys(
        self, windows: Sequence[Window], ids: Sequence[torch.Tensor], references: dict[Hashable, torch.Tensor]
    ) -> None:
        """Finds how much each label of a window profits from a long context, by one more pass with short ones."""
        for window, tokens in zip(windows, ids, strict=True):
            if not window.weighs_keys or window.name in self._key_weights:
                continue
            labels = tokens.shape[1] - 1
            rows = torch.arange(labels, device=tokens.device)
            long_losses = self._tail.losses(references[window.name], tokens, rows)
            short_losses = long_losses.clone()
            for start, first, end in short_pieces(labels):
                piece = tokens[:, start : end + 1]
                hidden = self._through_all(piece[:, :-1])
                short_losses[first:end] = self._tail.losses(hidden, piece, rows[first - start : end - start])
            # No pattern changes what is blind, so nothing there has a weight; all labels together weigh as many.
            blind = min(self.blind, labels)
            weights = torch.zeros(labels)
            if blind < labels:
                weights[blind:] = (
                    key_weights(long_losses[blind:], short_losses[blind:]) * labels / (labels - blind)
                )
            self._key_weights[window.name] = weights

    def _through_all(self, tokens: torch.Tensor, pattern: Pattern | None = None) -> torch.Tensor:
        """What leaves the last layer under ``pattern``, all full by default, for ``tokens`` ``[1, tokens]``."""
        calls = self._stack.record(tokens)
        state = State(calls.hidden)
        for layer in range(len(self._stack)):
            site = self._site_of.get(layer)
            full = pattern is None or site is None or pattern.is_full(site)
            state = self._through(layer, state, full, calls)
        self.switch.share_only(None)
        self.switch.forget()
        return state.hidden


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
