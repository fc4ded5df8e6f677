"""From stored tensors to a model's parameters, by transformers' own renamings and conversions."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ...errors import ModelError, first_line
from ..checkpoint.stored.shards import Tensor
from .layout import TYPES

Plain = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Makes plain numbers of tensors as stored, by name; what it is given may be empty afterwards."""


@dataclass
class Target:
    """What one parameter, or several that are made together, are made of.

    Args:
        name: of the first parameter.
        converter: that makes them; None where a plain tensor is the parameter.
        sources: (the converter's pattern, the plain tensor's name), in the order in which it takes them.
        stored: names of the stored tensors that all sources are made of.
    """

    name: str
    converter: Any
    sources: list[tuple[str, str]] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)


class Conversion:
    """Which stored tensors make which parameters of a model.

    transformers renames tensors and fuses experts while it loads a checkpoint whole. The same renamings and
    operations are applied here to the tensors of one layer, on whatever device they are.

    Args:
        model: its parameters and buffers have the names and shapes that are to come of it.
        types: of parameters and buffers, by name.
        parts: of each plain tensor of the checkpoint, the names of the stored ones that it is made of.
        plain: makes it of them.
    """

    def __init__(
        self,
        model: Any,
        types: Mapping[str, torch.dtype],
        parts: Mapping[str, Sequence[str]],
        plain: Plain = dict,
    ) -> None:
        self._model, self._parts, self._plain = model, parts, plain
        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._of_pattern = {
            pattern: converter for converter in self._converters for pattern in converter.source_patterns
        }
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self.types = {name: types.get(name, value.dtype) for name, value in model.state_dict().items()}
        """Of parameters and stored buffers, by name."""

    def targets(self) -> list[Target]:
        """What is made of the checkpoint; tensors that the model does not ask for are left out."""
        targets: dict[str, Target] = {}
        for name in sorted(self._parts, key=dot_natural_key):
            parameter, pattern = self._place(name)
            if parameter is None:
                continue
            converter = self._of_pattern[pattern] if pattern is not None else None
            target = targets.setdefault(parameter, Target(parameter, converter))
            target.sources.append((pattern or name, name))
            target.stored += self._parts[name]
        return list(targets.values())

    def account(self, headers: Mapping[str, Tensor]) -> dict[str, Sequence[str]]:
        """What a load would leave over or lack, as transformers accounts for it, by headers of plain tensors.

        Raises:
            ModelError: a parameter comes out with another shape than the model's.
        """
        targets = self.targets()
        used = {name for target in targets for _, name in target.sources}
        tensors = {
            name: torch.empty(headers[name].shape, dtype=TYPES[headers[name].dtype], device="meta")
            for name in used
        }
        made = set()
        for target in targets:
            try:
                parameters = self._convert(target, tensors)
            except RuntimeError as error:  # one of many experts is missing, or of another shape
                raise ModelError(
                    f"{target.name} cannot be made of the {len(target.sources)} tensors stored for it: "
                    f"{first_line(error)[:200]}",
                    hint="fetch or convert the checkpoint again",
                ) from error
            made |= {name for name, value in parameters.items() if self._checked(name, value) is value}
        tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
        absent = _beside(self._model._keys_to_ignore_on_load_missing, self._shapes.keys() - made - tied)
        extra = _beside(self._model._keys_to_ignore_on_load_unexpected, self._parts.keys() - used)
        return {"missing_keys": absent, "unexpected_keys": extra, "mismatched_keys": ()}

    def parameters(
        self, targets: Iterable[Target], tensors: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Makes parameters and buffers of stored ``tensors``, which are taken out of it: (name, value).

        No value shares memory with ``tensors``, so that this may be filled again. One target at a time is there
        as stored, as plain numbers and as what comes of them.

        Raises:
            ModelError: one has another shape than the model's.
        """
        memory = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        for target in targets:
            made = self._convert(target, self._plain({name: tensors.pop(name) for name in target.stored}))
            for name in list(made):
                value = self._checked(name, made.pop(name))
                value = value.to(self.types.get(name, value.dtype))
                is_stored = value.untyped_storage().data_ptr() in memory
                yield name, value.clone(memory_format=torch.contiguous_format) if is_stored else value.contiguous()

    def _checked(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if tuple(value.shape) != self._shapes.get(name, tuple(value.shape)):
            raise ModelError(
                f"{name} comes out with the shape {list(value.shape)}, not {list(self._shapes[name])}"
            )
        return value

    def _convert(self, target: Target, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if target.converter is None:
            return {target.name: tensors.pop(target.sources[-1][1])}
        dtype = self.types[target.name]
        converter = copy.deepcopy(target.converter)
        for pattern, name in target.sources:
            converter.add_tensor(target.name, name, pattern, tensors.pop(name).to(dtype))
        made = converter.convert(target.name, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _place(self, name: str) -> tuple[str | None, str | None]:
        """The parameter that ``name`` goes into, and the pattern of the converter by which it does."""
        prefix = self._model.base_model_prefix
        expected: Any = self._shapes
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, prefix, expected)
        if renamed not in expected and name in expected:
            renamed, pattern = rename_source_key(name, [], [], prefix, expected)
        return (renamed, pattern) if renamed in expected else (None, None)


def _beside(patterns: Iterable[str] | None, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that none of the model's own ``patterns`` lets pass."""
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())]
