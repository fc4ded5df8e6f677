"""What each site's attention suffers under each earlier site's selection, from one pass over the layers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...errors import MeasurementError, first_line
from ...system import processes
from ..checkpoint.families import CARRYING_ARGUMENTS, SELECTION_ARGUMENTS
from ..checkpoint.sites import expected_indexers
from ..chunks import ChunkBudget, out_of_memory
from ..overrides import Overrides
from .losses import input_device
from .stack import LayerCalls, Stack, State
from .states.parking import SelectionInHost
from .switch import Switch

ERROR, FISHER = "error", "fisher"
# Logits of as many positions are made at a time as take about this many bytes, their gradients included.
_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU = 256 << 20, 1 << 30

# What flows from layer to layer, by name: () for the hidden states, else (argument, entry, place in the entry).
Flow = dict[tuple[Hashable, ...], torch.Tensor]


@dataclass(frozen=True)
class LayerCosts:
    """Costs of every pair of sites, and what it took to measure them, over all processes.

    Args:
        windows: ``[windows][sites][sites]``: ``[w][i][j]`` is what site j suffers on window w under the
            selection of an earlier site i, all others full; 0 on the diagonal and below.
        layer_runs: decoder layers run; a backward pass through one counts as two.
        attention_runs: attention modules run alone, without the rest of their layer.
    """

    windows: tuple[tuple[tuple[float, ...], ...], ...]
    layer_runs: int
    attention_runs: int


def layer_costs(
    model: nn.Module,
    switch: Switch,
    windows: Sequence[Sequence[int]],
    surrogate: str = ERROR,
    blind: int = 0,
    seed: int = 0,
    on_window: Callable[[], None] = lambda: None,
) -> LayerCosts:
    """What each site's attention suffers under each earlier site's selection, without a search.

    All sites are full and every layer runs once; the attention of site j then runs again, alone, under the
    selection of each earlier site. With ``d_r`` by how much that changes its output at position r, ``h_r``
    the residual stream that the output is added to, and ``g_r`` the gradient of the loss at the output:

        error:   mean over r of |d_r|^2 / |h_r|^2
        fisher:  sum over r of (g_r . d_r)^2 / (2 labels)

    ``fisher`` estimates in nats per label the KL divergence of all full's predictions to those with site j
    served by site i: its loss has labels drawn from the model itself, so that the mean of ``g g^T`` is the
    Fisher information, the curvature of the KL. Products of two positions' terms are left out: on the embedded
    model they add a few per cent and most of the noise; without them one draw is enough.

    ``error`` needs no gradient, as the residual stream tells its size: norms make what follows blind to the
    length of ``h_r``, so gradients go by 1 / |h_r|. On the embedded model the mean of ``|g|^2 |h|^2`` is 0.9 to
    1.2 of its average in all layers but one (0.7), while ``|g|^2`` falls by 380 times from the first to the last.
    Errors relative to the attention's own output do not have that, and mislead.

    A layer that shares in the checkpoint itself suffers with the site that it follows, and its cost counts as
    that site's. The selections of all sites on one window are held, and for ``fisher`` the states before all
    layers and what the backward pass through one layer needs.

    Args:
        model: a transformers DSA model in evaluation mode, its weights frozen.
        switch: of its indexers; all full, and left so.
        windows: token ids; every process measures its share.
        surrogate: ``error`` or ``fisher``.
        blind: leading positions whose queries see no more keys than are selected; they are left out.
        seed: of the labels.
        on_window: called each time one window is measured here.

    Raises:
        MeasurementError: memory does not suffice, the attention that runs has no gradient, or costs are no
            numbers.
    """
    run = _CostPass(model, switch, blind)
    rank, together = processes.process_index(), processes.process_count()
    share = {number: ids for number, ids in enumerate(windows) if number % together == rank}
    measured: dict[int, list[list[float]]] = {}
    fault: MeasurementError | None = None
    try:
        for portion in run.portions(share, surrogate):
            measured |= _measured(run, portion, surrogate, seed)
            for _ in portion:
                on_window()
    except MeasurementError as error:
        fault = error
    # What one process cannot measure ends it on all, which would else wait for that one.
    parts = processes.merge({rank: (measured, run.layer_runs, run.attention_runs, fault)})
    for *_, part_fault in parts.values():
        if part_fault is not None:
            part_fault.shared = True
            raise part_fault
    merged = {number: costs for part, *_ in parts.values() for number, costs in part.items()}
    return LayerCosts(
        tuple(tuple(tuple(row) for row in merged[number]) for number in sorted(merged)),
        sum(layers for _, layers, _, _ in parts.values()),
        sum(attentions for _, _, attentions, _ in parts.values()),
    )


def _measured(
    run: _CostPass, portion: Mapping[int, Sequence[int]], surrogate: str, seed: int
) -> dict[int, list[list[float]]]:
    """Costs of some windows; what keeps them from being measured is said with what would help."""
    tokens = max(map(len, portion.values()), default=0)
    try:
        if surrogate == FISHER:
            costs = {number: run.fisher(ids, f"{seed}/{number}") for number, ids in portion.items()}
        else:
            costs = dict(zip(portion, run.errors(list(portion.values())), strict=True))
    except (RuntimeError, MemoryError) as error:
        raise _refusal(error, surrogate, tokens) from error
    finally:
        run.leave()
    for number, matrix in costs.items():
        if not all(math.isfinite(cost) for row in matrix for cost in row):
            raise MeasurementError(
                f"layer costs of window {number} are NaN or infinite",
                hint="check the checkpoint's own loss, or load it with --dtype float32",
            )
    return costs


def _refusal(error: Exception, surrogate: str, tokens: int) -> Exception:
    """``error`` as a user may read it; itself where it says nothing of memory or gradients."""
    if out_of_memory(error):
        needed = "the backward pass over" if surrogate == FISHER else "the selections of all sites on"
        return MeasurementError(
            f"out of memory for {needed} a window of {tokens} tokens",
            hint="--surrogate error needs no backward pass"
            if surrogate == FISHER
            else "lower --window, or --max-memory, so that weights leave more room",
        )
    if surrogate == FISHER:
        return MeasurementError(
            f"there is no backward pass through the layers as they run here: {first_line(error)}",
            hint="--surrogate error needs none; --attention stock has one",
        )
    return error


@dataclass
class _Passing:
    """A window on its way through the layers, all sites full.

    Args:
        calls: the layers' arguments.
        state: what enters the next layer.
        costs: ``[sites][sites]``, as far as they are known.
        selections: of the sites passed.
    """

    calls: LayerCalls
    state: State
    costs: list[list[float]]
    selections: list[Any] = field(default_factory=list)


class _CostPass:
    """Measures one window after the other, and counts what it runs."""

    def __init__(self, model: nn.Module, switch: Switch, blind: int) -> None:
        self._stack = Stack(model, switch.stack_name)
        self._switch = switch
        self._blind = blind
        self._device = input_device(model)
        self._site_of = {layer: site for site, layer in enumerate(switch.site_layers)}
        self._attentions = _attentions(model, self._stack.layers, switch.site_layers)
        self._logits_budget = ChunkBudget(_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU)
        self.layer_runs = self.attention_runs = 0

    def portions(
        self, share: Mapping[int, Sequence[int]], surrogate: str
    ) -> Iterator[Mapping[int, Sequence[int]]]:
        """``share`` in parts that are measured at once: whole where weights come for each sweep, else by windows.

        Processes that bring weights together sweep alike, those without windows too.
        """
        if surrogate == ERROR and self._stack.stream is not None:
            yield share
        else:
            yield from ({number: ids} for number, ids in share.items())

    @torch.inference_mode()
    def errors(self, windows: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """Relative errors ``[windows][sites][sites]``; all windows go through a layer before the next."""
        passing, sweep = [], self._stack.sweep()
        try:
            for ids in windows:
                calls = self._stack.record(self._ids(ids)[:, :-1])
                passing.append(_Passing(calls.without_hidden, State(calls.hidden), self._no_costs()))
            for layer in sweep:
                for window in passing:
                    self._add_errors(layer, window)
        except (RuntimeError, MemoryError, MeasurementError):
            # Other processes go on, and need this one's part of the weights.
            for _ in sweep:
                pass
            raise
        return [window.costs for window in passing]

    def _add_errors(self, layer: int, window: _Passing) -> None:
        """Sends ``window`` through ``layer`` and adds what its attention suffers to the window's costs."""
        attention, selections = self._attentions[layer], window.selections
        residual = self._rows(window.state.hidden).square().sum(-1)
        window.state = self._through(layer, window.state, window.calls)
        if layer in self._site_of:
            selections.append(self._aside(window.state.selection))
        if attention and self._selects(layer, attention, selections):
            for source, change in self._changes(layer, attention, attention.output, selections[:-1]):
                relative = self._rows(change).square().sum(-1) / residual.to(change.device)
                window.costs[source][len(selections) - 1] += float(relative.mean(dtype=torch.float64))
        if attention:
            attention.forget()

    def _aside(self, selection: Any) -> Any:
        """``selection`` while other layers run: in host memory where a GPU's is for layers that come and go."""
        streams_to_gpu = self._stack.stream is not None and self._device.type == "cuda"
        return SelectionInHost(selection) if streams_to_gpu and isinstance(selection, torch.Tensor) else selection

    def fisher(self, ids: Sequence[int], seed: str) -> list[list[float]]:
        """Fisher-weighted errors ``[sites][sites]`` of one window in nats per label."""
        costs, tokens = self._no_costs(), self._ids(ids)
        with torch.no_grad():
            calls = self._stack.record(tokens[:, :-1])
            states, selections = [State(calls.hidden)], list[Any]()
            for layer in range(len(self._stack)):
                states.append(self._through(layer, states[-1], calls))
                if layer in self._site_of:
                    selections.append(states[-1].selection)
            gradient: Flow = {(): self._tail_gradient(states.pop().hidden, tokens, seed)}
        for layer, attention in reversed(list(enumerate(self._attentions))):
            at_output, gradient = self._backward(layer, attention, states.pop(), selections, calls, gradient)
            if attention and at_output is not None and self._selects(layer, attention, selections):
                with torch.no_grad():
                    # Not the output that the gradient is at: other kernels may have made that.
                    stock = self._again(layer, attention, selections[-1])
                    for source, change in self._changes(layer, attention, stock, selections[:-1]):
                        products = (self._rows(at_output) * self._rows(change)).sum(-1)
                        squares = products.square().sum(dtype=torch.float64)
                        costs[source][len(selections) - 1] += float(squares) / (2 * (len(ids) - 1))
            if layer in self._site_of:
                selections.pop()
        return costs

    def leave(self) -> None:
        """Makes the model all full and drops everything that was kept of a window."""
        self._switch.share_only(None)
        self._switch.forget()
        for attention in self._attentions:
            if attention:
                attention.forget()

    def _ids(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.as_tensor(ids, dtype=torch.long, device=self._device).unsqueeze(0)

    def _no_costs(self) -> list[list[float]]:
        return [[0.0] * len(self._site_of) for _ in self._site_of]

    def _rows(self, states: torch.Tensor) -> torch.Tensor:
        """The informative rows of ``[1, tokens, ...]``: ``[rows, width]``, fp32."""
        return states[0, self._blind :].float().flatten(1)

    def _selects(self, layer: int, attention: _Attention, selections: Sequence[Any]) -> bool:
        """Whether the attention of ``layer`` reads a site's selection: its own, or one handed on to it."""
        return layer in self._site_of or (bool(selections) and attention.reads_selection)

    def _through(self, layer: int, state: State, calls: LayerCalls) -> State:
        """What leaves ``layer``, run full with its attention watched, when ``state`` enters it."""
        self.layer_runs += 1
        self._switch.selection = state.selection
        self._switch.share_only(None)
        with _watched(self._attentions[layer]):
            hidden, carried = self._stack.run_layer(layer, state, calls)
        return State(hidden, self._switch.selection, carried)

    def _again(self, layer: int, attention: _Attention, selection: Any) -> torch.Tensor:
        self.attention_runs += 1
        self._switch.selection = selection
        self._switch.share_only(layer)
        return attention.under(selection)

    def _changes(
        self, layer: int, attention: _Attention, stock: torch.Tensor, selections: Sequence[Any]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """By how much each earlier site's selection changes the output from ``stock``: (site, change)."""
        for source, selection in enumerate(selections):
            here = selection.back() if isinstance(selection, SelectionInHost) else selection
            yield source, self._again(layer, attention, here) - stock

    def _tail_gradient(self, hidden: torch.Tensor, ids: torch.Tensor, seed: str) -> torch.Tensor:
        """The gradient at the last layer's ``hidden`` of the cross entropy with labels that the model draws.

        Labels are drawn by inverting the distribution function at seeded numbers, which come from no device.
        """
        draw = random.Random(seed)
        places = torch.tensor([[draw.random()] for _ in range(hidden.shape[1])], dtype=torch.float64)
        gradient = torch.empty_like(hidden)

        def work(first: int, end: int) -> torch.Tensor:
            part = hidden[:, first:end].detach()
            with torch.enable_grad():
                logits = self._stack.logits(part.requires_grad_(), ids[:, first:end])[0]
            chances = logits.detach().float().softmax(-1)
            heights = chances.cumsum(-1, dtype=torch.float64)
            drawn = torch.searchsorted(heights, places[first:end].to(heights.device) * heights[:, -1:])
            drawn.clamp_(max=logits.shape[-1] - 1)  # beyond the last where logits are NaN
            # d(-log p_y)/d(logits) = p - one_hot(y)
            chances.scatter_add_(1, drawn, torch.full_like(drawn, -1.0, dtype=chances.dtype))
            gradient[:, first:end] = torch.autograd.grad(logits, part, chances.to(logits.dtype))[0]
            return logits

        def rows(first: int, end: int) -> None:
            work(1 + first, 1 + end)

        probe = work(0, 1)  # says how large the vocabulary is, and where logits are
        # Of one row: logits and their fp32 copy, chances, fp64 heights, and the gradient.
        self._logits_budget.run(hidden.shape[1] - 1, 24 * probe.shape[-1], probe.device, rows)
        return gradient

    def _backward(
        self,
        layer: int,
        attention: _Attention | None,
        state: State,
        selections: Sequence[Any],
        calls: LayerCalls,
        gradient: Flow,
    ) -> tuple[torch.Tensor | None, Flow]:
        """The loss's gradient at the attention's output, and at all that enters ``layer``.

        Args:
            layer: run again, its indexer replaced by what it selected before.
            attention: its attention, where it is known.
            state: what enters it.
            selections: of the sites up to this layer.
            calls: the layers' arguments.
            gradient: at all that leaves it.
        """
        self.layer_runs += 3
        entering = {name: tensor.detach().requires_grad_() for name, tensor in _flow(state).items()}
        self._switch.selection = selections[-1] if selections else None
        self._switch.share_only(layer)
        with torch.enable_grad(), _watched(attention):
            hidden, carried = self._stack.run_layer(layer, _state(entering, state), calls)
        leaving = _flow(State(hidden, None, carried))
        ends = [name for name in leaving if name in gradient and leaving[name].requires_grad]
        inputs = [*entering.values(), *([attention.output] if attention else [])]
        gradients = torch.autograd.grad(
            [leaving[name] for name in ends], inputs, [gradient[name] for name in ends], allow_unused=True
        )
        known = {name: part for name, part in zip(entering, gradients, strict=False) if part is not None}
        return gradients[-1] if attention else None, known


class _Attention:
    """A layer's attention module: what it was called with last, and what it returned."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forget()

    def forget(self) -> None:
        """Drops the last call."""
        self._args: tuple[Any, ...] = ()
        self._kwargs: Mapping[str, Any] = {}
        self.output: torch.Tensor = torch.empty(0)

    @property
    def reads_selection(self) -> bool:
        """Whether it was handed an earlier layer's selection, as layers are that share in the checkpoint."""
        return any(self._kwargs.get(name) is not None for name in SELECTION_ARGUMENTS)

    def watching(self, stock_forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that remembers its call."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            result = stock_forward(*args, **kwargs)
            self._args, self._kwargs, self.output = args, kwargs, _output(result)
            return result

        return forward

    def under(self, selection: Any) -> torch.Tensor:
        """Its output for the same inputs under ``selection``, which the switch of its indexer returns too."""
        kwargs = dict(self._kwargs)
        for name in kwargs.keys() & SELECTION_ARGUMENTS:
            kwargs[name] = selection
        for name in kwargs.keys() & CARRYING_ARGUMENTS:
            kwargs[name] = type(kwargs[name])(kwargs[name])  # it writes into it
        return _output(self.module(*self._args, **kwargs))


@contextmanager
def _watched(attention: _Attention | None) -> Iterator[None]:
    with Overrides() as overrides:
        if attention:
            overrides.replace(attention.module, "forward", attention.watching)
        yield


def _output(result: Any) -> torch.Tensor:
    output: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return output


def _attentions(
    model: nn.Module, layers: Sequence[nn.Module], site_layers: Sequence[int]
) -> list[_Attention | None]:
    """Each layer's attention: the child that holds the indexer, and where layers have none, of the same name.

    Where an indexer stands beside attention, not in it, the layer as a whole takes its place.
    """
    _, indexers = expected_indexers(model, site_layers)
    modules: dict[int, nn.Module] = {}
    names: set[str] = set()
    for layer, indexer in indexers.items():
        for name, child in layers[layer].named_children():
            if child is not indexer and any(module is indexer for module in child.modules()):
                modules[layer] = child
                names.add(name)
    shared_name = names.pop() if len(names) == 1 else None
    others = [getattr(layer, shared_name, None) if shared_name else layer for layer in layers]
    attentions = [modules.get(layer, other) for layer, other in enumerate(others)]
    return [_Attention(module) if isinstance(module, nn.Module) else None for module in attentions]


def _flow(state: State) -> Flow:
    """The tensors of ``state`` that gradients flow through, by name."""
    flow: Flow = {(): state.hidden}
    for argument, store in state.carried.items():
        for entry, tensors in store.items():
            flow |= {(argument, entry, place): tensor for place, tensor in enumerate(tensors)}
    return flow


def _state(flow: Flow, like: State) -> State:
    """``like`` with the tensors of ``flow`` in place of its own."""
    carried = {
        argument: {
            entry: tuple(flow[argument, entry, place] for place in range(len(tensors)))
            for entry, tensors in store.items()
        }
        for argument, store in like.carried.items()
    }
    return State(flow[()], like.selection, carried)
