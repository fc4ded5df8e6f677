"""Losses of windows under many patterns at once, running what the patterns have in common only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..pattern import Pattern
from .stack import LayerCalls, Stack
from .switch import Switch

# Logits are made for so many rows at a time that they take about this many bytes in fp32.
_LOGITS_BYTES = 256 << 20
_MOST_LOGITS_ROWS = 1024


@dataclass(frozen=True)
class _Branch:
    """The state that several patterns share so far: they agree on every site passed.

    Args:
        members: positions of those patterns in the list that was asked for.
        states: what enters the next layer, ``[1, tokens, ...]``.
        selection: what the last full site chose.
    """

    members: tuple[int, ...]
    states: torch.Tensor
    selection: Any


class PatternLosses:
    """Measures LM losses of a model under patterns, layer by layer.

    Patterns that agree on all sites up to a layer have the same states there, so the patterns of one
    call form a tree: it branches where they differ, and each branch runs once. The candidates of a
    greedy step differ in one site each and so cost about half of what separate runs would.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
    """

    def __init__(self, model: nn.Module, site_layers: Sequence[int]) -> None:
        self.switch = Switch(model, site_layers)
        self._stack = Stack(model, self.switch.stack_name)
        self._site_of = {layer: site for site, layer in enumerate(site_layers)}
        self._device = next(model.parameters()).device
        self.layer_runs = 0
        """Decoder-layer executions so far, one per layer, window and branch."""

    @torch.inference_mode()
    def measure(self, patterns: Sequence[Pattern], token_ids: Sequence[int]) -> list[float]:
        """Each pattern's summed cross entropy in nats over one window's labels, accumulated in fp64.

        Args:
            patterns: over the model's sites.
            token_ids: the window; its n tokens have n - 1 labels.
        """
        ids = torch.as_tensor(token_ids, dtype=torch.long, device=self._input_device()).unsqueeze(0)
        # The last token is nobody's context: it serves as a label only.
        input_ids, labels = ids[:, :-1], ids[0, 1:]
        self.switch.share_only(None)
        calls = self._stack.record(input_ids)
        branches = [_Branch(tuple(range(len(patterns))), calls.hidden, None)]
        for layer in range(len(self._stack)):
            branches = [
                self._run(layer, branch, full, calls)
                for parent in branches
                for full, branch in self._split(layer, parent, patterns)
            ]
        losses = [0.0] * len(patterns)
        for branch in branches:
            loss = self._loss(branch.states, input_ids, labels)
            for member in branch.members:
                losses[member] = loss
        self.switch.forget()
        return losses

    def _input_device(self) -> torch.device:
        # Weights that are offloaded live on the meta device; accelerate's hooks move the ids then.
        return torch.device("cpu") if self._device.type == "meta" else self._device

    def _split(self, layer: int, branch: _Branch, patterns: Sequence[Pattern]) -> list[tuple[bool, _Branch]]:
        """``branch`` by the role that its patterns give ``layer``: (runs its indexer, branch)."""
        site = self._site_of.get(layer)
        if site is None:
            return [(True, branch)]
        split = []
        for full in (True, False):
            members = tuple(each for each in branch.members if patterns[each].is_full(site) is full)
            if members:
                split.append((full, _Branch(members, branch.states, branch.selection)))
        return split

    def _run(self, layer: int, branch: _Branch, full: bool, calls: LayerCalls) -> _Branch:
        self.layer_runs += 1
        self.switch.selection = branch.selection
        self.switch.share_only(None if full else layer)
        states = self._stack.run_layer(layer, branch.states, calls, branch.selection)
        return _Branch(branch.members, states, self.switch.selection)

    def _loss(self, states: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor) -> float:
        """Summed cross entropy of the labels; never holds the whole ``[tokens, vocabulary]`` matrix."""
        total, start, rows = 0.0, 0, 1
        while start < len(labels):
            stop = min(start + rows, len(labels))
            logits = self._stack.logits(states[:, start:stop], input_ids[:, start:stop])[0].float()
            losses = nn.functional.cross_entropy(logits, labels[start:stop].to(logits.device), reduction="none")
            total += float(losses.double().sum())
            start = stop
            rows = max(1, min(_MOST_LOGITS_ROWS, _LOGITS_BYTES // (4 * logits.shape[-1])))
        return total
