"""compressed-tensors: integers packed into 32 bits, and FP8 or 8-bit integers, as llm-compressor writes them.

Names and layouts are those of the package compressed-tensors, 0.15 to 0.20; order of columns of those before. The
package multiplies in the type of the scales; where that is the model's, the numbers are the same bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ....errors import ModelError
from ...checkpoint.stored.shards import Tensor
from .quantised import FETCH_AGAIN, FLOATS, RESTORE, SCALE_TYPES, QuantisedWeight, StoredFormat, grid_of

METHOD = "compressed-tensors"
_PACKED, _NUMBERS = "pack-quantized", ("float-quantized", "int-quantized", "naive-quantized")
# Widths of packed integers that divide 32: others cross words, in ways that changed between versions.
_BITS = (2, 4, 8)
# Orders of columns that need a tensor to be undone.
_ORDERED = (True, "group", "dynamic")


@dataclass(frozen=True)
class Scheme:
    """How a group of weights is quantised, as ``config_groups`` says it.

    Args:
        packed: whether integers are packed into 32 bits.
        kind: of the numbers.
        bits: of a number.
        strategy: what shares a scale: a tensor, a row ("channel"), a group of a row's columns, or a block.
        block: rows and columns that share a scale; as many as there are where that is 0.
        symmetric: whether zero points are all 0, and not stored.
        ordered: whether a tensor says to which group a column belongs.
    """

    packed: bool
    kind: Literal["int", "float"]
    bits: int
    strategy: Literal["tensor", "channel", "group", "block"]
    block: tuple[int, int]
    symmetric: bool
    ordered: bool

    @property
    def words(self) -> str:
        """The scheme in words, e.g. ``INT4 in groups of 32``."""
        shared = {
            "tensor": "with one scale a tensor",
            "channel": "with one scale a row",
            "group": f"in groups of {self.block[1]}",
            "block": f"in {self.block[0]} x {self.block[1]} blocks",
        }
        return f"{'INT' if self.kind == 'int' else 'FP'}{self.bits} {shared[self.strategy]}"

    @property
    def stored_bits(self) -> float:
        """Bits of a number, with its share of a scale of 16 bits, and of a zero point where there is one."""
        shared = math.prod(self.block)  # 0 where a row or more shares them
        return self.bits + ((16 + (0 if self.symmetric else self.bits)) / shared if shared else 0)

    def reading(self, codes: Tensor, scales: Tensor) -> tuple[tuple[int, ...], tuple[int, int] | None] | None:
        """The plain shape and the block, where tensors of these headers can be read so; else None."""
        if codes.dtype != self._dtype or len(codes.shape) < 2 or (self.packed and len(codes.shape) != 2):
            return None
        shape = codes.shape
        if self.packed:
            columns = scales.shape[-1] * self.block[1] if self.strategy == "group" and scales.shape else 0
            shape = (*shape[:-1], columns or shape[-1] * 32 // self.bits)
            if -(-shape[-1] * self.bits // 32) != codes.shape[-1]:
                return None
        if self.strategy == "tensor":
            return (shape, None) if scales.numbers == 1 else None
        block = (self.block[0] or shape[-2], self.block[1] or shape[-1])
        if self.strategy == "group" and shape[-1] % block[1]:
            return None
        grid = grid_of(shape, block)
        return (shape, block) if scales.shape in (grid, grid[:-1] if grid[-1] == 1 else grid) else None

    @property
    def _dtype(self) -> str:
        if self.packed:
            return "I32"
        return "F8_E4M3" if self.kind == "float" else "I8"


@dataclass(frozen=True)
class CompressedTensors(StoredFormat):
    """Weights as the package compressed-tensors stores them.

    Args:
        model_id: whose weights they are, for messages.
        schemes: of the config's groups, those alike once; which one a weight is in, its tensors say.
        targets: what the config says of that: names of modules or classes, or patterns after ``re:``, with the
            scheme of each, in the order of the groups.
        ignored: likewise of modules that stay plain.
    """

    schemes: tuple[Scheme, ...]
    targets: tuple[tuple[str, Scheme], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The format in words."""
        return f"{METHOD} {' and '.join(scheme.words for scheme in self.schemes)}"

    def stored_bits(self, module: str) -> float | None:
        """By the group that names the module, else by the one that takes all linear layers."""
        if any(_names(target, module) for target in self.ignored):
            return None
        named = [scheme for target, scheme in self.targets if _names(target, module)]
        linear = [scheme for target, scheme in self.targets if target == "Linear"]
        return (named or linear)[0].stored_bits if named or linear else None

    def _weights(self, stored: Mapping[str, Tensor]) -> list[QuantisedWeight]:
        weights = []
        for name, tensor in stored.items():
            stem, _, kind = name.rpartition(".")
            if kind == "weight_packed" or (kind == "weight" and tensor.dtype in (*FLOATS, "I8")):
                weights.append(self._weight(stored, name, f"{stem}.weight" if stem else "weight"))
        consumed = {name for weight in weights for name in weight.stored}
        for name in stored:
            weight = name.removesuffix("_scale")
            if name.endswith(".weight_scale") and name not in consumed and weight in stored:
                raise ModelError(
                    f"{self.model_id!r} holds the scales {name} beside {weight} in {stored[weight].dtype}, which "
                    "is not quantised",
                    hint="it was never compressed, or dequantised in part: convert the checkpoint again",
                )
        return weights

    def _weight(self, stored: Mapping[str, Tensor], codes: str, name: str) -> QuantisedWeight:
        """The weight ``name``, whose numbers are in the tensor ``codes``."""
        scales, zeros, order, extent = (f"{name}_{part}" for part in ("scale", "zero_point", "g_idx", "shape"))
        if scales not in stored or stored[scales].dtype not in SCALE_TYPES[:3]:
            there = f"scales in {stored[scales].dtype}" if scales in stored else f"no scales {scales}"
            raise ModelError(
                f"{self.model_id!r} holds {codes} in {stored[codes].dtype} and {there}",
                hint=f"without scales it would load as wrong weights: {FETCH_AGAIN}",
            )
        scheme, shape, block = self._scheme(stored, codes, scales)
        for part, is_needed in ((zeros, not scheme.symmetric), (order, scheme.ordered)):
            if is_needed and part not in stored:
                raise ModelError(
                    f"{self.model_id!r} holds {codes} without {part}, which its config promises",
                    hint=f"without it the weight would be wrong: {FETCH_AGAIN}",
                )
        weight = QuantisedWeight(
            name, shape, codes, scales, block,
            encoding="integer" if scheme.packed else "number",
            bits=scheme.bits,
            zeros=zeros if zeros in stored else None,
            order=order if order in stored and scheme.strategy == "group" else None,
            extent=extent if extent in stored else None,
        )  # fmt: skip
        self._check_parts(stored, weight)
        return weight

    def _scheme(
        self, stored: Mapping[str, Tensor], codes: str, scales: str
    ) -> tuple[Scheme, tuple[int, ...], tuple[int, int] | None]:
        """The one scheme of the config that these tensors can be read by, with shape and block."""
        readings = [(scheme, scheme.reading(stored[codes], stored[scales])) for scheme in self.schemes]
        fitting = [(scheme, reading[0], reading[1]) for scheme, reading in readings if reading is not None]
        if len(fitting) == 1:
            return fitting[0]
        readable = " or ".join(scheme.words for scheme in self.schemes)
        raise ModelError(
            f"{codes} of {self.model_id!r} is {stored[codes].dtype} {list(stored[codes].shape)} with scales "
            f"{list(stored[scales].shape)}, which can be read as {'more than one' if fitting else 'none'} of what "
            f"its config names: {readable}",
            hint=RESTORE,
        )

    def _check_parts(self, stored: Mapping[str, Tensor], weight: QuantisedWeight) -> None:
        """Holds zero points and the order of columns against the weight."""
        rows = -(-weight.shape[-2] * weight.bits // 32)
        wanted = {}
        if weight.zeros is not None:
            packed = stored[weight.zeros].dtype == "I32"
            wanted[weight.zeros] = (rows, weight.grid[-1]) if packed else stored[weight.scales].shape
        if weight.order is not None:
            wanted[weight.order] = (weight.shape[-1],)
        if weight.extent is not None:
            wanted[weight.extent] = (len(weight.shape),)
        for name, shape in wanted.items():
            if stored[name].shape != shape or stored[name].dtype not in ("I8", "I32", "I64"):
                raise ModelError(
                    f"{name} of {self.model_id!r} is {stored[name].dtype} {list(stored[name].shape)}, where "
                    f"{weight.codes} needs integers {list(shape)}",
                    hint=FETCH_AGAIN,
                )


def compressed_format(settings: Mapping[str, Any], model_id: str) -> CompressedTensors | None:
    """The format that a ``quantization_config`` describes; None where the package alone reads a part of it.

    Args:
        settings: the ``quantization_config`` of config.json.
        model_id: whose it is, for messages.
    """
    sparsity = settings.get("sparsity_config") or {}
    if settings.get("transform_config") or sparsity.get("format", "dense") != "dense":
        return None
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return None
    schemes = [_scheme_of(group, settings.get("format")) for group in groups.values()]
    known = [scheme for scheme in schemes if scheme is not None]
    if len(known) < len(schemes):
        return None
    targets = (
        (target, scheme)
        for group, scheme in zip(groups.values(), known, strict=True)
        for target in _texts(group.get("targets"))
    )
    return CompressedTensors(model_id, tuple(dict.fromkeys(known)), tuple(targets), _texts(settings.get("ignore")))


def _names(target: str, module: str) -> bool:
    """Whether a group's target, a name or a pattern after ``re:``, is for a module."""
    if not target.startswith("re:"):
        return target == module
    try:
        return re.match(target.removeprefix("re:"), module) is not None
    except re.error:
        return False


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list | tuple) else ()


def _scheme_of(group: Any, default: Any) -> Scheme | None:
    """The scheme of one group, None where it is not read here."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    form, kind, bits = group.get("format") or default, weights.get("type", "int"), weights.get("num_bits", 8)
    strategy, block = _shared(weights)
    packed = form == _PACKED
    readable = (kind == "int" and bits in _BITS) if packed else (form in _NUMBERS and bits == 8)
    if not readable or kind not in ("int", "float") or block is None or (packed and strategy == "block"):
        return None
    symmetric = bool(weights.get("symmetric", True))
    return Scheme(packed, kind, bits, strategy, block, symmetric, weights.get("actorder") in _ORDERED)


def _shared(weights: Mapping[str, Any]) -> tuple[Any, tuple[int, int] | None]:
    """The strategy, and the rows and columns that share a scale, 0 for all; None where it is not read here."""
    group, structure = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy")
    if not isinstance(strategy, str | None):
        return strategy, None
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    if isinstance(structure, str):
        structure = [int(part) for part in structure.split("x") if part.isdecimal()]
    blocks = {"tensor": [0, 0], "channel": [1, 0], "group": [1, group], "block": structure}
    block = blocks.get(strategy)
    if not isinstance(block, list) or len(block) != 2 or any(type(length) is not int for length in block):
        return strategy, None
    if strategy in ("group", "block") and min(block) < 1:
        return strategy, None
    return strategy, (block[0], block[1])
