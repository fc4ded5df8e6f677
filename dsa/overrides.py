"""A method replaced on an instance, and given back: one mechanism for all that run a model otherwise."""

from __future__ import annotations

from typing import Any

from torch import nn


def restore(module: nn.Module, name: str, overridden: Any) -> None:
    """Undoes an override of a method on the instance: back to ``overridden``, or to the class's own if None."""
    if overridden is None:
        module.__dict__.pop(name, None)
    else:
        setattr(module, name, overridden)
