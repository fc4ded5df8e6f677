"""From stored tensors to a model's parameters, by transformers' own renamings and conversions."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ...errors import ModelError


@dataclass
class _Target:
    """What one parameter, or several that are made together, are made of.

    Args:
        name: of the first parameter.
        converter: that makes them; None where the stored tensor is the parameter.
        sources: (the converter's pattern, stored name), in the order in which it takes them.
    """

    name: str
    converter: Any
    sources: list[tuple[str, str]] = field(default_factory=list)


class Conversion:
    """Which stored tensors make which parameters of a model.

    transformers renames tensors and fuses experts while it loads a checkpoint whole. The same renamings and
    operations are applied here to the tensors of one layer, on whatever device they are.

    Args:
        model: its parameters and buffers have the names and shapes that are to come of it.
        types: of parameters and buffers, by name.
    """

    def __init__(self, model: Any, types: Mapping[str, torch.dtype]) -> None:
        self._model = model
        self.types = {name: types.get(name, value.dtype) for name, value in model.state_dict().items()}
        """Of parameters and stored buffers, by name."""
        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._of_pattern = {
            pattern: converter for converter in self._converters for pattern in converter.source_patterns
        }
        self._expected = {
            name: (tuple(value.shape), self.types[name]) for name, value in model.state_dict().items()
        }

    def parameter(self, name: str) -> str | None:
        """The parameter, or the first of several, that the stored tensor ``name`` goes into; None for no one."""
        return self._place(name)[0]

    def targets(self, names: Collection[str]) -> list[_Target]:
        """What is made of the stored tensors ``names``; those that the model does not ask for are left out."""
        targets: dict[str, _Target] = {}
        for name in sorted(names, key=dot_natural_key):
            parameter, pattern = self._place(name)
            if parameter is None:
                continue
            converter = self._of_pattern[pattern] if pattern is not None else None
            target = targets.setdefault(parameter, _Target(parameter, converter))
            target.sources.append((pattern or name, name))
        return list(targets.values())

    def parameters(
        self, targets: Collection[_Target], tensors: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Makes parameters and buffers of ``tensors``, which are taken out of it: (name, value).

        No value shares memory with ``tensors``, so that this may be filled again.

        Raises:
            ModelError: one has another shape than the model's.
        """
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        for target in targets:
            made = self._convert(target, tensors)
            for name in list(made):
                value = made.pop(name)
                shape, dtype = self._expected.get(name, (tuple(value.shape), value.dtype))
                if tuple(value.shape) != shape:
                    raise ModelError(f"{name} comes out with the shape {list(value.shape)}, not {list(shape)}")
                value = value.to(dtype)
                yield name, value.clone() if value.untyped_storage().data_ptr() in given else value.contiguous()

    def _convert(self, target: _Target, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if target.converter is None:
            return {target.name: tensors.pop(target.sources[-1][1])}
        dtype = self._expected[target.name][1]
        converter = copy.deepcopy(target.converter)
        for pattern, name in target.sources:
            tensor = tensors.pop(name)
            converter.add_tensor(target.name, name, pattern, tensor if tensor.dtype == dtype else tensor.to(dtype))
        made = converter.convert(target.name, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _place(self, name: str) -> tuple[str | None, str | None]:
        """The parameter that ``name`` goes into, and the pattern of the converter by which it does."""
        prefix = self._model.base_model_prefix
        expected: Mapping[str, Any] = self._expected
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, prefix, expected)
        if renamed not in expected and name in expected:
            renamed, pattern = rename_source_key(name, [], [], prefix, expected)
        return (renamed, pattern) if renamed in expected else (None, None)
