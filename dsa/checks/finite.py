"""Names what makes a model's own numbers NaN or infinite: a weight with such values, or a type too narrow."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import ModelError


def broken_weight(module: nn.Module, prefix: str = "") -> str | None:
    """The name, under ``prefix``, of the first weight of ``module`` that is not finite; None where all are.

    Weights that are elsewhere at the moment, or of a type that says nothing alone, are passed over.
    """
    for name, weight in module.named_parameters(prefix):
        here = weight.device.type != "meta" and weight.is_floating_point() and weight.dtype.itemsize >= 2
        if here and not bool(weight.isfinite().all()):
            return name
    return None


def not_finite(what: str, module: nn.Module, prefix: str, dtype: torch.dtype) -> ModelError:
    """The refusal of a model of which ``what``, made by ``module``, is NaN or infinite.

    Args:
        what: a clause, e.g. ``layer 3 produces NaN or infinity``.
        module: whose weights are looked through for the cause.
        prefix: its name in the model.
        dtype: that it computes in.
    """
    name = broken_weight(module, prefix)
    if name is not None:
        return ModelError(
            f"{what}: its weight {name} holds such values",
            hint="the weights are broken: fetch or convert the checkpoint again",
        )
    if dtype == torch.float16:
        return ModelError(what, hint="float16 may not hold its numbers: try --dtype bfloat16")
    return ModelError(what, hint="its weights or its config are wrong: fetch or convert the checkpoint again")
