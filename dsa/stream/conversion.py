"""From stored tensors to a model's parameters, by transformers' own renamings and conversions."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ...errors import ModelError, first_line
from ..checkpoint.stored.shards import Tensor
from .formats.quantised import WORKING_BYTES, StoredFormat
from .layout import TYPES


@dataclass(frozen=True)
class Place:
    """Where one tensor stands in the parameter that several are fused into.

    Args:
        expert: its number along the first dimension; None where it takes a part of all of the parameter.
        dim: along which it begins at ``start`` and has ``length``, of the expert or of all.
        start: see ``dim``.
        length: see ``dim``.
    """

    expert: int | None
    dim: int
    start: int
    length: int

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """A view of its part of ``parameter``."""
        part = parameter if self.expert is None else parameter[self.expert]
        return part.narrow(self.dim, self.start, self.length)


@dataclass
class Target:
    """What one parameter, or several that are made together, are made of.

    Args:
        name: of the first parameter.
        converter: that makes them; None where a plain tensor is the parameter.
        sources: (the converter's pattern, the plain tensor's name), in the order in which it takes them.
        stored: names of the stored tensors that all sources are made of.
        places: of the plain tensors in the parameter, where it is made of them by nothing else than putting them
            there; empty where it is not.
    """

    name: str
    converter: Any
    sources: list[tuple[str, str]] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    places: Mapping[str, Place] = field(default_factory=dict)


class Conversion:
    """Which stored tensors make which parameters of a model.

    transformers renames tensors and fuses experts while it loads a checkpoint whole. The same renamings and
    operations are applied here to the tensors of one layer, on whatever device they are.

    Args:
        model: its parameters and buffers have the names and shapes that are to come of it.
        types: of parameters and buffers, by name.
        parts: of each plain tensor of the checkpoint, the names of the stored ones that it is made of.
        shapes: of plain tensors, by name; those that are fused go straight to their places where these are known.
        known: the format of quantised weights; None where all are plain.
        dtype: of what is dequantised.
    """

    def __init__(
        self,
        model: Any,
        types: Mapping[str, torch.dtype],
        parts: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Sequence[int]] | None = None,
        known: StoredFormat | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model, self._parts, self._plain_shapes = model, parts, shapes or {}
        self._known, self._dtype = known, dtype
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
        for target in targets.values():
            target.places = self._places_in(target)
        return list(targets.values())

    def making(self, target: Target) -> int:
        """About the bytes that are taken while a target is made, beside its stored tensors and what is made."""
        size = math.prod(self._shapes[target.name]) * self.types[target.name].itemsize
        fused = 0 if target.converter is None or target.places else 2 * size
        if self._known is None:
            return fused
        # One quantised weight after the other.
        quantised = [name for _, name in target.sources if len(self._parts[name]) > 1]
        return fused + max(
            (WORKING_BYTES * math.prod(self._plain_shapes.get(name, ())) for name in quantised), default=0
        )

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
            stored = {name: tensors.pop(name) for name in target.stored}
            if target.places:
                yield target.name, self._fused(target, stored)
                continue
            made = self._convert(target, stored if self._known is None else self._known.plain(stored, self._dtype))
            for name in list(made):
                value = self._checked(name, made.pop(name))
                value = value.to(self.types.get(name, value.dtype))
                is_stored = value.untyped_storage().data_ptr() in memory
                yield name, value.clone(memory_format=torch.contiguous_format) if is_stored else value.contiguous()

    def _fused(self, target: Target, stored: dict[str, torch.Tensor]) -> torch.Tensor:
        """The parameter whose parts are put, or dequantised, straight to their places; empties ``stored``."""
        device = next(iter(stored.values())).device
        parameter = torch.empty(self._shapes[target.name], dtype=self.types[target.name], device=device)
        places = {name: place.of(parameter) for name, place in target.places.items()}
        if self._known is not None:
            self._known.plain_into(stored, places)
        else:
            for name, place in places.items():
                place.copy_(stored.pop(name))
        return parameter

    def _places_in(self, target: Target) -> dict[str, Place]:
        """Where the plain tensors of a target stand in it; none where its converter does more than fuse them."""
        shape, converter = self._shapes[target.name], target.converter
        known = all(name in self._plain_shapes for _, name in target.sources)
        if converter is None or not known or len(converter.target_patterns) != 1:
            return {}
        if self._known is not None and self.types[target.name] != self._dtype:
            return {}  # it is rounded to one type after the other
        names = {pattern: [name for of, name in target.sources if of == pattern] for pattern, _ in target.sources}
        if sorted(names) != sorted(converter.source_patterns):
            return {}
        sizes = {name: tuple(self._plain_shapes[name]) for _, name in target.sources}
        places = _fusing_places(
            [names[pattern] for pattern in converter.source_patterns], sizes, converter.operations
        )
        parameter = torch.empty(shape, device="meta")
        try:
            fits = all(place.of(parameter).shape == sizes[name] for name, place in places.items())
        except (IndexError, RuntimeError):  # it is beyond the parameter; the load says so
            fits = False
        count = sum(map(math.prod, sizes.values()))
        return places if fits and count == math.prod(shape) else {}

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


def _fusing_places(
    names: Sequence[Sequence[str]], shapes: Mapping[str, tuple[int, ...]], operations: Sequence[Any]
) -> dict[str, Place]:
    """Where tensors of these shapes come to stand if they are stacked, concatenated or both; else nowhere.

    Args:
        names: of the tensors, by pattern and in the order in which ``operations`` take them.
        shapes: by name.
        operations: transformers' own.
    """
    stacks, joins = (isinstance(operations[end], kind) for end, kind in ((0, MergeModulelist), (-1, Concatenate)))
    if len(operations) != stacks + joins or (stacks and operations[0].dim) or (not joins and len(names) > 1):
        return {}
    dim, start, places = (operations[-1].dim - stacks if joins else 0), 0, {}
    for alike in names:
        for number, name in enumerate(alike):
            if not 0 <= dim < len(shapes[name]):
                return {}
            length = shapes[name][dim]
            places[name] = Place(number if stacks else None, dim, start, length)
            start += 0 if stacks else length
        start += shapes[alike[0]][dim] if stacks else 0
    return places


def _beside(patterns: Iterable[str] | None, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that none of the model's own ``patterns`` lets pass."""
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())]
