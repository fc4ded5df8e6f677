"""Other parameters in the place of a module's, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def swapped(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within it ``module`` has other parameters, in the type and on the device of its own, which come back.

    Args:
        module: whose own parameters are there, on no meta device.
        parameters: by their names in the module.
    """
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for path, value in parameters.items():
            name = path.rpartition(".")[2]
            owner = module.get_submodule(path.rpartition(".")[0])
            original = owner._parameters[name]
            assert original is not None, f"{path} is a parameter of the module"
            placed = value.to(device=original.device, dtype=original.dtype)
            before.append((owner, name, original))
            owner._parameters[name] = nn.Parameter(placed, requires_grad=False)
        yield
    finally:
        for owner, name, original in before:
            owner._parameters[name] = original
