"""What each quantised format can do: name itself, check stored tensors by headers, make plain weights of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ....errors import ModelError
from ...checkpoint.stored.shards import TORCH_NAMES, Tensor
from ...checkpoint.stored.unread import and_more, is_of_activations

if TYPE_CHECKING:
    import torch

FLOATS = ("F8_E4M3", "F8_E5M2")
# What holds no plain numbers, whatever a config says: 8 bits or less.
SMALL = (
    *FLOATS, "I8", "U8", "F4", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2"
)  # fmt: skip
# What scales are stored in; the last two hold exponents of 2 alone.
SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
# Bytes for each number of a weight while PyTorch's operations make it: twice 32 bits. FP8 takes none on a GPU.
WORKING_BYTES = 8
RESTORE = "restore the config.json that belongs to the weights"
FETCH_AGAIN = "fetch or convert the checkpoint again"
_HEADER_NAMES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


@dataclass(frozen=True)
class QuantisedWeight:
    """A quantised weight: which stored tensors it is made of, and how.

    ``weight = (codes - zeros) * scales``, where a scale and a zero point are for a block of the weight.

    Args:
        name: of the plain weight.
        shape: of the plain weight, ``[..., rows, columns]``.
        codes: name of the tensor of quantised numbers.
        scales: name of the tensor of scales.
        block: rows and columns that share a scale; the last ones may be fewer. None for one scale in all.
        encoding: "number" where the codes' own type says it; "e2m1", two a byte, the even column in the lower
            half; "integer", of ``bits`` bits packed into 32, the first column lowest, each 2^(bits - 1) too high.
        bits: of an "integer".
        zeros: name of the tensor of zero points; packed down the rows where it is of 32 bits.
        order: name of the tensor that says to which group of columns a column belongs.
        extent: name of the tensor that holds ``shape``.
    """

    name: str
    shape: tuple[int, ...]
    codes: str
    scales: str
    block: tuple[int, int] | None
    encoding: Literal["number", "e2m1", "integer"] = "number"
    bits: int = 8
    zeros: str | None = None
    order: str | None = None
    extent: str | None = None

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of all stored tensors that it is made of."""
        names = (self.codes, self.scales, self.zeros, self.order, self.extent)
        return tuple(name for name in names if name is not None)

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of its scales: one for each block."""
        if self.block is None:
            return (1,) * len(self.shape)
        return grid_of(self.shape, self.block)


def grid_of(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """How many blocks there are in each dimension of ``[..., rows, columns]``, those begun counted whole."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


@dataclass(frozen=True)
class StoredFormat(ABC):
    """A format of quantised weights that is dequantised here.

    Args:
        model_id: whose weights they are, for messages.
    """

    model_id: str

    @property
    @abstractmethod
    def words(self) -> str:
        """The format in words, e.g. ``FP8 in 128 x 128 blocks``."""

    @abstractmethod
    def stored_bits(self, module: str) -> float | None:
        """Bits of a number of the weight of ``module``, by the config and with scales; None if it is plain."""

    @abstractmethod
    def _weights(self, stored: Mapping[str, Tensor]) -> list[QuantisedWeight]:
        """The quantised weights among stored tensors, each held against its scales."""

    def weights(self, stored: Mapping[str, Tensor]) -> list[QuantisedWeight]:
        """The quantised weights among ``stored``, headers by name, with what each is made of.

        Raises:
            ModelError: scales that are absent, double, of another shape, or beside a plain tensor; tensors of
                8 bits or less that are no part of a quantised weight.
        """
        weights = self._weights(stored)
        consumed = {name for weight in weights for name in weight.stored}
        left = [
            name
            for name, tensor in stored.items()
            if tensor.dtype in SMALL and name not in consumed and not is_of_activations(name)
        ]
        if left:
            raise ModelError(
                f"{self.model_id!r} holds {and_more(left)} in {stored[left[0]].dtype}, which no weight in "
                f"{self.words} is made of: it would load as wrong numbers",
                hint=RESTORE,
            )
        return weights

    def check(self, stored: Mapping[str, Tensor]) -> None:
        """Checks ``stored``, headers by name, of a checkpoint or a part of it.

        Raises:
            ModelError: see ``weights``.
        """
        self.weights(stored)

    def plain_shapes(
        self, stored: Mapping[str, Tensor], dtype: str = "BF16"
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What ``plain`` makes of tensors with these headers: type and shape by name, types as headers call them.

        Args:
            stored: headers by name.
            dtype: of the dequantised weights.

        Raises:
            ModelError: see ``weights``.
        """
        weights = self.weights(stored)
        consumed = {name for weight in weights for name in weight.stored}
        shapes = {weight.name: (dtype, weight.shape) for weight in weights}
        for name, tensor in stored.items():
            if name not in consumed and not is_of_activations(name):
                shapes[name] = (tensor.dtype, tensor.shape)
        return shapes

    def plain(self, tensors: MutableMapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Plain weights by name, made where the stored tensors are; ``tensors`` is empty after it.

        Tensors are taken out of ``tensors`` weight by weight, so that, where nobody else holds them, one weight
        at most is there twice. Tensors that are not quantised pass as they are; scales of activations are dropped,
        as weights do without. A GPU is waited for only where stored tensors say shapes, once, or orders.

        Args:
            tensors: of a layer, or any part that has whole weights: as stored, by stored names.
            dtype: of the dequantised weights.

        Raises:
            ModelError: see ``weights``; or what only the numbers tell: another extent, an impossible order.
        """
        from .arithmetic import dequantised

        weights = self._checked_weights(tensors)
        plain = {}
        for weight in weights:
            parts = {name: tensors.pop(name) for name in weight.stored}
            plain[weight.name] = dequantised(weight, parts, dtype)
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not is_of_activations(name):
                plain[name] = tensor
        return plain

    def plain_into(self, tensors: MutableMapping[str, torch.Tensor], places: Mapping[str, torch.Tensor]) -> None:
        """Likewise, but each plain weight is made where it is to be: ``places`` has its name, shape and type.

        A layer's experts are made in what they are fused into, so that nothing of them is there twice.

        Raises:
            ModelError: see ``plain``.
        """
        from .arithmetic import dequantise_into

        dequantise_into(self._checked_weights(tensors), tensors, places)
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not is_of_activations(name):
                places[name].copy_(tensor)

    def _checked_weights(self, tensors: Mapping[str, torch.Tensor]) -> list[QuantisedWeight]:
        """The quantised weights among ``tensors``, with shapes that tensors say held against those of headers."""
        from .arithmetic import check_extents

        weights = self.weights({name: header(tensor) for name, tensor in tensors.items()})
        check_extents(weights, tensors)
        return weights


def header(tensor: torch.Tensor) -> Tensor:
    """The header of a safetensors file that would hold ``tensor`` alone."""
    torch_name = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if torch_name == "float4_e2m1fn_x2":  # torch counts pairs, a header numbers
        return Tensor("F4", (*shape[:-1], 2 * shape[-1]), 0, tensor.nbytes)
    return Tensor(_HEADER_NAMES.get(torch_name, torch_name), shape, 0, tensor.nbytes)
