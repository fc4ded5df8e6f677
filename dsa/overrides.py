"""A method replaced on an instance, and given back: one mechanism for all that run a model otherwise."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn

# Makes the replacement from the method that the instance has.
Replacement = Callable[[Callable[..., Any]], Callable[..., Any]]


class Overrides:
    """Methods that were replaced on modules, until ``undo`` or the end of a ``with`` block.

    Modules stay where they are and keep their class: fp32 lists, state dicts, offload hooks and code that asks
    what a module is all go by those. Overrides of several users nest: the last one put on is undone first.
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, str, Any, Callable[..., Any]]] = []

    def replace(self, module: nn.Module, name: str, replacement: Replacement) -> None:
        """Puts what ``replacement`` makes of the method ``name`` in its place on ``module``."""
        overridden = module.__dict__.get(name)  # None where the class's own runs
        method = replacement(getattr(module, name))
        setattr(module, name, method)
        self._replaced.append((module, name, overridden, method))

    @property
    def on_top(self) -> bool:
        """Whether nobody has replaced any of these methods again since."""
        return all(module.__dict__.get(name) is method for module, name, _, method in self._replaced)

    def undo(self) -> None:
        """Gives every module back what it had; a second time does nothing."""
        while self._replaced:
            module, name, overridden, _ = self._replaced.pop()
            if overridden is None:
                module.__dict__.pop(name, None)
            else:
                setattr(module, name, overridden)

    def __enter__(self) -> Overrides:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
