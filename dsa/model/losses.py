"""Losses of windows under many patterns at once, running what the patterns have in common only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ...evaluate import WindowLoss
from ...pattern import FULL, SHARED, Pattern
from ..stream.memory import HostRuns
from .objectives import key_weights, short_pieces
from .stack import LayerCalls, Stack, State
from .states.parking import ParkedState, Parking
from .states.paths import PathMemory
from .switch import Switch
from .tail import Predictions, References, Tail, Window


@dataclass(frozen=True)
class _Row:
    """A window in a state that several patterns share so far: they agree on every site passed.

    Args:
        window: position of the window in the sweep.
        members: positions of those patterns in the list that was asked for.
        state: what enters the next layer, where it waits for that.
    """

    window: int
    members: tuple[int, ...]
    state: ParkedState


class Asked(NamedTuple):
    """Patterns, and windows to measure all of them on.

    Args:
        patterns: over the model's sites.
        windows: to measure them on.
        keep_states: of a single pattern, where there is a memory; others may start from them.
    """

    patterns: Sequence[Pattern]
    windows: Sequence[Window]
    keep_states: bool = False


@dataclass
class _Field:
    """The patterns that are measured on one window.

    Args:
        window: that is measured.
        ids: its tokens, ``[1, tokens]``.
        members: positions of the patterns among all that are measured.
        kept: of which of them states are kept.
    """

    window: Window
    ids: torch.Tensor
    members: tuple[int, ...] = ()
    kept: int | None = None


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
        row_budget: bytes of the device for the states of rows that wait; what they need beyond it waits in host
            memory.
    """

    def __init__(
        self,
        model: nn.Module,
        site_layers: Sequence[int],
        blind: int = 0,
        memory: PathMemory | None = None,
        reference_budget: int = 1 << 30,
        row_budget: int = 1 << 62,
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
        self._row_budget = row_budget
        self._host_runs = HostRuns(self._device)
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
        return self.measure_all([Asked(patterns, windows, keep_states)], last_token)[0]

    def measure_all(self, asked: Sequence[Asked], last_token: bool = False) -> list[list[list[float]]]:
        """Likewise for several sets of patterns and windows in one sweep, ``[asked][window][pattern]``."""
        measured = self._measure(asked, last_token, compares=False)
        return [[[loss.loss for loss in losses] for losses in windows] for windows in measured]

    def compare(
        self,
        patterns: Sequence[Pattern],
        windows: Sequence[Window],
        last_token: bool = False,
        keep_states: bool = True,
    ) -> list[list[WindowLoss]]:
        """The same losses, and beside them what compares each pattern with all full, which runs once a window."""
        return self.compare_all([Asked(patterns, windows, keep_states)], last_token)[0]

    def compare_all(self, asked: Sequence[Asked], last_token: bool = False) -> list[list[list[WindowLoss]]]:
        """Likewise for several sets of patterns and windows in one sweep, ``[asked][window][pattern]``."""
        return self._measure(asked, last_token, compares=True)

    @torch.inference_mode()
    def _measure(self, asked: Sequence[Asked], last_token: bool, compares: bool) -> list[list[list[WindowLoss]]]:
        patterns = list(dict.fromkeys(pattern for patterns, _, _ in asked for pattern in patterns))
        place = {pattern: number for number, pattern in enumerate(patterns)}
        fields: dict[Hashable, _Field] = {}
        for some, windows, keep_states in asked:
            for window in windows:
                field = fields.setdefault(window.name, _Field(window, self._ids(window)))
                field.members = tuple(sorted({*field.members, *(place[pattern] for pattern in some)}))
                if keep_states and len(some) == 1 and not last_token:
                    field.kept = place[some[0]]
        try:
            losses = self._losses_of(patterns, list(fields.values()), last_token, compares)
        finally:
            # Whatever happened, the model is left all full and holds on to no selection.
            self.switch.share_only(None)
            self.switch.forget()
        return [
            [[losses[window.name][place[pattern]] for pattern in some] for window in windows]
            for some, windows, _ in asked
        ]

    def _losses_of(
        self, patterns: Sequence[Pattern], fields: Sequence[_Field], last_token: bool, compares: bool
    ) -> dict[Hashable, dict[int, WindowLoss]]:
        references = self._references.of([field.window for field in fields]) if compares else None
        unknown = [field for field in fields if self._lacks_all_full(field, patterns, last_token, references)]
        if self._stack.anywhere(bool(unknown)):
            alone = [_Field(field.window, field.ids, (0,)) for field in unknown]
            self._sweep([self._full], alone, False, references)
        if references is not None:
            self._weigh_keys(fields, references)
        return self._sweep(patterns, fields, last_token, references)

    def _lacks_all_full(
        self,
        field: _Field,
        patterns: Sequence[Pattern],
        last_token: bool,
        references: dict[Hashable, torch.Tensor] | None,
    ) -> bool:
        """Whether all full has to run on a window first, for something that the coming sweep does not give."""
        window = field.window
        runs_now = not last_token and any(patterns[member] == self._full for member in field.members)
        if references is not None and window.name not in references:
            return not runs_now or window.weighs_keys
        blind = self.blind and window.answers is None and not last_token
        return bool(blind) and not runs_now and window.name not in self._blind_loss

    def _sweep(
        self,
        patterns: Sequence[Pattern],
        fields: Sequence[_Field],
        last_token: bool,
        references: dict[Hashable, torch.Tensor] | None,
    ) -> dict[Hashable, dict[int, WindowLoss]]:
        """Runs all rows through all layers; what is to be compared finds and puts all full in ``references``."""
        parking = Parking(self._device, self._row_budget, self._host_runs)
        rows = self._leaving(patterns, fields, last_token, None if last_token else self.memory, parking)
        return self._row_losses(patterns, fields, rows, parking, last_token, references)

    def _leaving(
        self,
        patterns: Sequence[Pattern],
        fields: Sequence[_Field],
        last_token: bool,
        memory: PathMemory | None,
        parking: Parking,
    ) -> list[_Row]:
        """The rows that leave the last layer; ``memory`` gives states to start from, and is given some to keep."""
        calls, entering = self._enter(fields, patterns, last_token, memory, parking)
        states_to_keep: list[dict[int, State]] = [{} for _ in fields]
        rows: list[_Row] = []
        for layer in self._stack.sweep(min(entering, default=len(self._stack))):
            leaving: list[_Row] = []
            for row, state in parking.states([*rows, *entering.pop(layer, [])], lambda row: row.state):
                if memory is not None and fields[row.window].kept in row.members and memory.wants(layer, state):
                    states_to_keep[row.window][layer] = state
                for role, members in self._split(layer, row.members, patterns):
                    left = self._through(layer, state, role, calls[row.window])
                    leaving.append(_Row(row.window, members, parking.park(left)))
            rows = leaving
        for field, states in zip(fields, states_to_keep, strict=True):
            if memory is not None and field.kept is not None:
                memory.keep(field.window.name, patterns[field.kept], states)
        return rows

    def _enter(
        self,
        fields: Sequence[_Field],
        patterns: Sequence[Pattern],
        last_token: bool,
        memory: PathMemory | None,
        parking: Parking,
    ) -> tuple[list[LayerCalls], dict[int, list[_Row]]]:
        """How the model calls its layers for each of ``fields``, and rows by the layer that they enter first.

        One window after the other: the device may have no room for the states of all.
        """
        calls: list[LayerCalls] = []
        entering: dict[int, list[_Row]] = {}
        for index, field in enumerate(fields):
            call = self._stack.record(field.ids if last_token else field.ids[:, :-1])
            for start, members, state in _starts(field, patterns, State(call.hidden), memory):
                entering.setdefault(start, []).append(_Row(index, members, parking.park(state)))
            calls.append(call.without_hidden.sharing(calls[-1]) if calls else call.without_hidden)
        return calls, entering

    def _row_losses(
        self,
        patterns: Sequence[Pattern],
        fields: Sequence[_Field],
        rows: Sequence[_Row],
        parking: Parking,
        last_token: bool,
        references: dict[Hashable, torch.Tensor] | None,
    ) -> dict[Hashable, dict[int, WindowLoss]]:
        """What the rows that left the last layer cost, by window and pattern."""
        losses: dict[Hashable, dict[int, WindowLoss]] = {field.window.name: {} for field in fields}
        # All full comes first: the others are compared with it, and its row gives the window's blind loss, as
        # other rows' differ by rounding, where experts group tokens.
        all_full = {member for member, pattern in enumerate(patterns) if pattern == self._full}
        in_order = sorted(rows, key=lambda row: all_full.isdisjoint(row.members))
        for row, state in parking.states(in_order, lambda row: row.state):
            field, hidden = fields[row.window], state.hidden
            window, reference = field.window, None
            if references is not None:
                is_reference = not (last_token or all_full.isdisjoint(row.members))
                if is_reference and window.name not in references:
                    references[window.name] = self._references.keep(window.name, hidden)
                reference = hidden if is_reference else references[window.name]
            loss = self._loss(hidden, window, field.ids, last_token, reference)
            losses[window.name] |= dict.fromkeys(row.members, loss)
        return losses

    @torch.inference_mode()
    def predictions(
        self, patterns: Sequence[Pattern], windows: Sequence[Window], positions: Sequence[int], top: int
    ) -> list[Predictions]:
        """What each pattern predicts after some positions of each window, in one sweep.

        Args:
            patterns: over the model's sites, all different.
            windows: that go through the layers together.
            positions: of a window, ascending; not its last, whose query nothing here runs.
            top: of a pattern's likeliest tokens, how many are among the candidates.
        """
        members = tuple(range(len(patterns)))
        fields = [_Field(window, self._ids(window), members) for window in windows]
        parking = Parking(self._device, self._row_budget, self._host_runs)
        try:
            rows = self._leaving(patterns, fields, False, None, parking)
        finally:
            self.switch.share_only(None)
            self.switch.forget()
        predictions: list[Predictions] = []
        for number, field in enumerate(fields):
            of_window = [row for row in rows if row.window == number]
            states = [state.hidden for _, state in parking.states(of_window, lambda row: row.state)]
            asked = torch.as_tensor(positions, dtype=torch.long, device=field.ids.device)
            of_rows = self._tail.predictions(states, field.ids, asked, top)
            place = {member: index for index, row in enumerate(of_window) for member in row.members}
            predictions.append(of_rows.picked([place[member] for member in members]))
        return predictions

    @torch.inference_mode()
    def selections(
        self, windows: Sequence[Window], keep: Callable[[Any], Any] = lambda selection: selection
    ) -> list[list[Any]]:
        """What each site selects when all are full, ``[windows][sites]``, in one sweep.

        Args:
            windows: that go through the layers together.
            keep: what to keep of a selection, which is in the family's own form: mostly ``[1, tokens, width]``.
        """
        calls = [self._stack.record(self._ids(window)[:, :-1]) for window in windows]
        states = [State(call.hidden) for call in calls]
        selections: list[list[Any]] = [[] for _ in windows]
        for layer in self._stack.sweep():
            for number, call in enumerate(calls):
                states[number] = self._through(layer, states[number], FULL, call)
                if layer in self._site_of:
                    selections[number].append(keep(states[number].selection))
        self.switch.forget()
        return selections

    @property
    def streams(self) -> bool:
        """Whether weights come to the device for each sweep, so that few sweeps pay."""
        return self._stack.stream is not None

    @property
    def gathers(self) -> bool:
        """Whether several processes bring weights together, and so have to sweep alike."""
        return self._stack.stream is not None and self._stack.stream.gathers

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that came to this process's device so far, as stored."""
        return 0 if self._stack.stream is None else self._stack.stream.weight_bytes

    @torch.inference_mode()
    def logits(self, pattern: Pattern, window: Window, positions: int) -> torch.Tensor:
        """Logits ``[1, positions, vocabulary]`` of a window's last positions under ``pattern``."""
        ids = self._ids(window)
        hidden = self._through_all(ids, pattern)
        return self._stack.logits(hidden[:, -positions:], ids[:, -positions:])

    def _ids(self, window: Window) -> torch.Tensor:
        return torch.as_tensor(window.token_ids, dtype=torch.long, device=self._device).unsqueeze(0)

    def _split(
        self, layer: int, members: tuple[int, ...], patterns: Sequence[Pattern]
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Those of a row's patterns by the role that they give ``layer``: (role, members), full ones first."""
        site = self._site_of.get(layer)
        if site is None:
            yield FULL, members
            return
        of_role: dict[str, list[int]] = {FULL: []}
        for member in members:
            of_role.setdefault(patterns[member].role(site), []).append(member)
        for role, alike in of_role.items():
            if alike:
                yield role, tuple(alike)

    def _through(self, layer: int, state: State, role: str, calls: LayerCalls) -> State:
        """What leaves ``layer``, run in its ``role``, when ``state`` enters it."""
        self.layer_runs += 1
        self.switch.selection = state.selection
        self.switch.share_only(layer if role == SHARED else None)
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

    def _weigh_keys(self, fields: Sequence[_Field], references: dict[Hashable, torch.Tensor]) -> None:
        """Finds how much each label of a window profits from a long context, by one more pass with short ones."""
        unknown = [
            (field.window, field.ids)
            for field in fields
            if field.window.weighs_keys and field.window.name not in self._key_weights
        ]
        if not self._stack.anywhere(bool(unknown)):
            return
        pieces = [(tokens, piece) for _, tokens in unknown for piece in short_pieces(tokens.shape[1] - 1)]
        leaving = self._through_full([tokens[:, start:end] for tokens, (start, _, end) in pieces])
        for window, tokens in unknown:
            rows = torch.arange(tokens.shape[1] - 1, device=tokens.device)
            long_losses = self._tail.losses(references[window.name], tokens, rows)
            short_losses = long_losses.clone()
            for start, first, end in short_pieces(len(rows)):
                piece = tokens[:, start : end + 1]
                short_losses[first:end] = self._tail.losses(
                    next(leaving), piece, rows[first - start : end - start]
                )
            self._key_weights[window.name] = _weights(long_losses, short_losses, min(self.blind, len(rows)))

    def _through_full(self, tokens: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What leaves the last layer under all full for each ``[1, tokens]``, in order, after one sweep."""
        parking = Parking(self._device, self._row_budget, self._host_runs)
        calls: list[LayerCalls] = []
        rows: list[ParkedState] = []
        for ids in tokens:
            call = self._stack.record(ids)
            rows.append(parking.park(State(call.hidden)))
            calls.append(call.without_hidden)
        for layer in self._stack.sweep():
            passing = parking.states(list(zip(calls, rows, strict=True)), lambda row: row[1])
            rows = [parking.park(self._through(layer, state, FULL, call)) for (call, _), state in passing]
        self.switch.forget()
        return (state.hidden for _, state in parking.states(rows, lambda row: row))

    def _through_all(self, tokens: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        """What leaves the last layer under ``pattern`` for ``tokens`` ``[1, tokens]``."""
        calls = self._stack.record(tokens)
        state = State(calls.hidden)
        for layer in self._stack.sweep():
            site = self._site_of.get(layer)
            state = self._through(layer, state, FULL if site is None else pattern.role(site), calls)
        self.switch.share_only(None)
        self.switch.forget()
        return state.hidden


def _weights(long_losses: torch.Tensor, short_losses: torch.Tensor, blind: int) -> torch.Tensor:
    """Key weights of all labels; no pattern changes what is blind, so nothing there has one."""
    labels = len(long_losses)
    weights = torch.zeros(labels)
    if blind < labels:  # all labels together weigh as many as they are
        weights[blind:] = key_weights(long_losses[blind:], short_losses[blind:]) * labels / (labels - blind)
    return weights


def input_device(model: Any) -> torch.device:
    """Where token ids go: to the embedding's device, or the CPU where accelerate's hooks move them."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def _starts(
    field: _Field, patterns: Sequence[Pattern], embedded: State, memory: PathMemory | None
) -> Iterator[tuple[int, tuple[int, ...], State]]:
    """Where each pattern has to begin, with what is known of it; at layer 0 enters ``embedded``."""
    groups: dict[tuple[int, int], list[int]] = {}
    states: dict[int, State] = {}
    for member in field.members:
        start = memory.find(field.window.name, patterns[member]) if memory is not None else None
        layer, state = start or (0, embedded)
        states[id(state)] = state
        groups.setdefault((layer, id(state)), []).append(member)
    for (layer, identity), members in groups.items():
        yield layer, tuple(members), states[identity]
