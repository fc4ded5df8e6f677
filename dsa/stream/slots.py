"""Where a layer's parameters and buffers stand in its modules, to be filled and emptied over and over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class _Slot:
    module: nn.Module
    name: str
    is_buffer: bool
    absent: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """What is there."""
        values: Mapping[str, Any] = self.module._buffers if self.is_buffer else self.module._parameters
        there: torch.Tensor = values[self.name]
        return there

    def put(self, value: torch.Tensor) -> None:
        if self.is_buffer:
            self.module._buffers[self.name] = value
        else:
            self.module._parameters[self.name] = nn.Parameter(value, requires_grad=False)


class Slots:
    """The parameters and stored buffers of ``model`` whose names begin with ``prefix``.

    What is computed when a model is built, and stored nowhere, is left alone.

    Args:
        model: with them on the meta device.
        prefix: of their names; empty for all.
        without: prefixes of names that are left out.
    """

    def __init__(self, model: nn.Module, prefix: str = "", without: tuple[str, ...] = ()) -> None:
        self._slots: dict[str, _Slot] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            kept = {name: value for name, value in module._buffers.items() if value is not None}
            for name in module._non_persistent_buffers_set:
                kept.pop(name, None)
            parameters = {name: value for name, value in module._parameters.items() if value is not None}
            for name, value in (parameters | kept).items():
                full = f"{path}.{name}" if path else name
                if full.startswith(prefix) and not full.startswith(without):
                    self._slots[full] = _Slot(module, name, name in kept, value.to("meta"))

    def bytes(self, types: Mapping[str, torch.dtype]) -> int:
        """Bytes of the values, each in its type of ``types``."""
        return sum(slot.absent.numel() * types[name].itemsize for name, slot in self._slots.items())

    def fill(self, values: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Puts ``values`` in their places, by full name."""
        for name, value in values:
            self._slots[name].put(value)

    def replace(self, values: Mapping[str, torch.Tensor]) -> None:
        """Puts ``values``, by full name, in the places of those that are there, in their types."""
        for name, value in values.items():
            self._slots[name].put(value.to(self._slots[name].value))

    def empty(self) -> None:
        """Puts values without content, on the meta device, in all places."""
        for slot in self._slots.values():
            slot.put(slot.absent)
