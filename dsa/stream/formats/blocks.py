"""FP8 with a scale a block, a tensor or an expert, and FP4 beside it, as DeepSeek, GLM and Mistral ship them.

Names and layouts are those of transformers' ``Fp8Dequantize``, but that blocks are the config's, and the last ones
may be smaller, as in DeepSeek-V3's ``weight_dequant``. FP4 is laid out as DeepSeek-V4's ``convert.py`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ....errors import ModelError
from ...checkpoint.stored.shards import Tensor
from ...checkpoint.stored.unread import and_more
from .quantised import FETCH_AGAIN, FLOATS, SCALE_TYPES, QuantisedWeight, StoredFormat, grid_of

# Methods that name such formats, and the blocks where the config names none.
METHODS = {"fp8": (128, 128), "mxfp8": (1, 32)}
_SCALES = ("weight_scale_inv", "scale", "qscale_weight")
# Two FP4 numbers a byte, which headers call I8, and a scale for 32 numbers of a row.
_PACKED = ("I8", "F4")
_PACKED_BLOCK = (1, 32)


@dataclass(frozen=True)
class BlockScaled(StoredFormat):
    """FP8 numbers with scales for blocks of them.

    Args:
        model_id: whose weights they are, for messages.
        block: rows and columns that share a scale; None for one scale a tensor, or an expert of a fused one.
        has_fp4_experts: whether the config says that experts are in FP4.
        plain_modules: names, or their ends, of modules that the config leaves plain.
    """

    block: tuple[int, int] | None
    has_fp4_experts: bool = False
    plain_modules: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The format in words."""
        scaled = "FP8 with one scale a tensor" if self.block is None else f"FP8 in {_times(self.block)} blocks"
        return f"{scaled}, experts in FP4" if self.has_fp4_experts else scaled

    def stored_bits(self, module: str) -> float | None:
        """FP4 with a byte for 32 numbers, or FP8 with 32 bits for a block."""
        if any(
            module == name or module.startswith(f"{name}.") or module.endswith(name) for name in self.plain_modules
        ):
            return None
        if self.has_fp4_experts and ".experts." in module:
            return 4 + 8 / math.prod(_PACKED_BLOCK)
        return 8 + (0 if self.block is None else 32 / math.prod(self.block))

    def _weights(self, stored: Mapping[str, Tensor]) -> list[QuantisedWeight]:
        weights = [
            self._weight(stored, name)
            for name, tensor in stored.items()
            if tensor.dtype in (*FLOATS, *_PACKED) and not _is_scale(name)
        ]
        self._refuse_scales_of_plain_tensors(stored)
        return weights

    def _weight(self, stored: Mapping[str, Tensor], name: str) -> QuantisedWeight:
        """The weight whose numbers are in the tensor ``name``, its scales held against it."""
        tensor, block = stored[name], self.block
        shape = (*tensor.shape[:-1], 2 * tensor.shape[-1]) if tensor.dtype == "I8" else tensor.shape
        if tensor.dtype in _PACKED:
            block = _PACKED_BLOCK
        scales = self._scales_of(stored, name)
        grid = stored[scales].shape
        if stored[scales].numbers == 1 and (len(grid) < 2 or block is None):
            block = None  # one scale for the whole tensor
        elif block is None or len(shape) < 2:
            # One scale for each expert of a fused tensor: [8, 1, 1] beside [8, 256, 128].
            expected: tuple[int, ...] = (*shape[:-2], 1, 1) if len(shape) > 2 else ()
            self._check_grid(stored, name, scales, expected, "one block")
            block = (shape[-2], shape[-1])
        else:
            self._check_grid(stored, name, scales, grid_of(shape, block), f"blocks of {_times(block)}")
        encoding = "e2m1" if tensor.dtype in _PACKED else "number"
        return QuantisedWeight(name, shape, name, scales, block, encoding)  # type: ignore[arg-type]

    def _scales_of(self, stored: Mapping[str, Tensor], name: str) -> str:
        """The name of the scales of a tensor in 8 bits or less."""
        stem = name.removesuffix(".weight")
        names = dict.fromkeys([f"{name}_scale_inv", *(f"{stem}.{scale}" for scale in _SCALES)])
        scales = [candidate for candidate in names if candidate in stored]
        if len(scales) > 1:
            raise ModelError(
                f"{self.model_id!r} holds two scales for {name}: {scales[0]} and {scales[1]}",
                hint=f"which of them is meant is not known: {FETCH_AGAIN}",
            )
        if not scales:
            beside = sorted(other for other in stored if other != name and other.startswith(f"{stem}."))
            others = f"; {and_more(beside)} stand beside it" if beside else ""
            raise ModelError(
                f"{self.model_id!r} holds {name} in {stored[name].dtype} without scales under a name that is read "
                f"({', '.join(_SCALES)}){others}",
                hint=f"without scales it would load as wrong weights: {FETCH_AGAIN}",
            )
        if stored[scales[0]].dtype not in SCALE_TYPES:
            raise ModelError(
                f"{self.model_id!r} holds the scales {scales[0]} in {stored[scales[0]].dtype}, where "
                f"{', '.join(SCALE_TYPES)} are known",
                hint=FETCH_AGAIN,
            )
        return scales[0]

    def _check_grid(
        self, stored: Mapping[str, Tensor], name: str, scales: str, expected: tuple[int, ...], blocks: str
    ) -> None:
        if stored[scales].shape != expected:
            raise ModelError(
                f"the scales {scales} of {self.model_id!r} have the shape {list(stored[scales].shape)}, where "
                f"{list(stored[name].shape)} in {blocks} needs {list(expected)}",
                hint="weight_block_size in config.json is not that of the weights, or they are broken",
            )

    def _refuse_scales_of_plain_tensors(self, stored: Mapping[str, Tensor]) -> None:
        for scales in stored:
            name = scales.removesuffix("_scale_inv")
            plain = name != scales and name in stored and stored[name].dtype not in (*FLOATS, *_PACKED)
            if plain:
                raise ModelError(
                    f"{self.model_id!r} holds the scales {scales} beside {name} in {stored[name].dtype}, which "
                    "needs none and would be multiplied by them",
                    hint="it was dequantised in part: convert the checkpoint again",
                )


def _is_scale(name: str) -> bool:
    return name.endswith(tuple(f".{scale}" for scale in _SCALES)) or name.endswith("_scale_inv")


def _times(block: tuple[int, int]) -> str:
    return f"{block[0]} x {block[1]}"
