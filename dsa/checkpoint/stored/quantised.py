"""Whether the format of a checkpoint's weights can be read here, and whether their scales fit them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ....errors import ModelError, first_line
from ..config import Checkpoint
from .shards import Tensor
from .unread import and_more, shared_refusal, unread

# Methods of transformers that read FP8 tensors in blocks with scales, and blocks where the config names none.
_BLOCK_METHODS = {"fp8": (128, 128), "mxfp8": (1, 32)}
# Of other methods, those that read FP8 or 8-bit integers in ways of their own.
_OTHER_EIGHT_BIT = {
    "aqlm", "auto-round", "awq", "bitnet", "bitsandbytes", "compressed-tensors", "eetq", "fbgemm_fp8",
    "fouroversix", "fp_quant", "gemma", "gptq", "higgs", "hqq", "metal", "mxfp4", "quanto", "quark", "sinq",
    "spqr", "torchao", "vptq",
}  # fmt: skip
_FLOATS = ("F8_E4M3", "F8_E5M2")
_PACKED = ("I8", "F4")
# Two FP4 numbers a byte, and a scale for 32 of them.
_PACKED_BLOCK = (1, 32)
_SMALL = (*_FLOATS, *_PACKED, "U8", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2")
_SCALES = ("weight_scale_inv", "scale", "qscale_weight")
_PACKAGES = {
    "aqlm": "aqlm", "auto-round": "auto-round", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "eetq": "kernels", "fp_quant": "fp_quant",
    "gptq": "optimum gptqmodel", "hqq": "hqq", "mxfp4": "kernels", "quanto": "optimum-quanto",
    "quark": "amd-quark", "spqr": "spqr_quant", "torchao": "torchao", "vptq": "vptq",
}  # fmt: skip
_CONVERT = "load a copy in bfloat16"


def check_format(checkpoint: Checkpoint) -> Any:
    """Transformers' quantiser for the checkpoint, as it will run here; None where its config names no format.

    Raises:
        ModelError: transformers does not know the format, or a package is not there.
    """
    settings = _settings(checkpoint)
    if settings is None:
        return None
    method = _method(settings)
    subject = f"the weights of {checkpoint.model_id!r} are in the format {method!r}"
    from transformers.quantizers import AutoHfQuantizer

    if method is None:
        raise ModelError(
            f"the quantization_config of {checkpoint.model_id!r} has no quant_method",
            hint="restore its config.json",
        )
    if not AutoHfQuantizer.supports_quant_method(settings):
        raise ModelError(f"{subject}, which {_version()} does not know", hint=_CONVERT)
    try:
        quantiser = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
        quantiser.validate_environment(device_map=None, weights_only=True)
    except ImportError as error:
        remedy = f"pip install {_PACKAGES[method]}" if method in _PACKAGES else "install it"
        message = f"{subject}, which needs a package that is not here: {first_line(error)}"
        raise shared_refusal(message, remedy) from error
    except Exception as error:  # no GPU, settings of another version, ...: each format has its own class
        message = f"{subject}, which cannot be read here: {first_line(error)}"
        raise shared_refusal(message, _CONVERT) from error
    if method in _BLOCK_METHODS and not dequantises(quantiser) and not _has_kernels():
        raise shared_refusal(
            f"{subject}, which runs on this GPU through transformers' kernels, and these need the package "
            "kernels, which is not here or too old",
            "pip install -U kernels",
        )
    return quantiser


def dequantises(quantiser: Any) -> bool:
    """Whether transformers turns the weights into plain ones while it loads them."""
    return bool(getattr(quantiser.quantization_config, "dequantize", False))


def check_tensors(checkpoint: Checkpoint, stored: Mapping[str, Tensor], quantiser: Any) -> None:
    """Compares stored tensors, by name, with what ``quantiser``, from ``check_format``, will make of them.

    Raises:
        ModelError: 8-bit tensors that would be taken for plain numbers, tensors without their scales, scales
            of another shape, or ones that transformers reads in other blocks than they were written in.
    """
    ignored = unread(stored, checkpoint, quantised=True)
    tensors = {name: tensor for name, tensor in stored.items() if name not in ignored}
    settings = _settings(checkpoint)
    method = _method(settings) if settings is not None else None
    if method in _BLOCK_METHODS and quantiser is not None:
        _Scales(checkpoint, tensors, quantiser, settings or {}).check()
    elif method not in _OTHER_EIGHT_BIT:
        _refuse_eight_bits(checkpoint, tensors)
    elif method in ("bitsandbytes", "gptq", "awq", "mxfp4", "metal", "eetq"):
        # These have 8-bit integers of their own, and read no FP8.
        _refuse_eight_bits(checkpoint, tensors, _FLOATS)


def _settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    for config in (checkpoint.config, checkpoint.text):
        settings = getattr(config, "quantization_config", None)
        if settings is not None:
            return dict(settings if isinstance(settings, Mapping) else settings.to_dict())
    return None


def _method(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method")
    if method is None:
        return "bitsandbytes" if settings.get("load_in_8bit") or settings.get("load_in_4bit") else None
    return str(getattr(method, "value", method))


def _has_kernels() -> bool:
    from transformers.utils import is_kernels_available

    return bool(is_kernels_available())


def _version() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def _refuse_eight_bits(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], kinds: tuple[str, ...] = _SMALL
) -> None:
    small = [name for name, tensor in tensors.items() if tensor.dtype in kinds]
    if not small:
        return
    settings = _settings(checkpoint)
    claim = "has no quantization_config" if settings is None else f"names the format {_method(settings)!r}"
    raise ModelError(
        f"{checkpoint.model_id!r} holds {tensors[small[0]].dtype} tensors, {and_more(small)}, but its config "
        f"{claim}: without their scales they would load as wrong weights",
        hint="restore the config.json that belongs to the weights",
    )


class _Scales:
    """The scales of a checkpoint in FP8, and of FP4 beside it, held against the tensors that they are for."""

    def __init__(
        self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], quantiser: Any, settings: Mapping[str, Any]
    ) -> None:
        self._checkpoint, self._tensors, self._quantiser = checkpoint, tensors, quantiser
        default = _BLOCK_METHODS[_method(settings) or ""]
        block = settings.get("weight_block_size", default)
        self._block: tuple[int, int] | None = None if block is None else (int(block[0]), int(block[1]))

    def check(self) -> None:
        ragged: list[str] = []
        for name, tensor in self._tensors.items():
            if tensor.dtype in (*_FLOATS, *_PACKED) and not self._is_scale(name):
                scales = self._scales_of(name)
                if self._check_grid(name, scales):
                    ragged.append(name)
        self._refuse_scales_of_plain_tensors()
        if ragged and dequantises(self._quantiser) and not _reads_ragged_blocks(self._quantiser):
            raise self._unreadable(ragged)

    def _is_scale(self, name: str) -> bool:
        return name.endswith(tuple(f".{scale}" for scale in _SCALES)) or name.endswith("_scale_inv")

    def _names(self, name: str) -> list[str]:
        """Under which names transformers looks for the scales of a tensor."""
        stem = name.removesuffix(".weight")
        return [f"{name}_scale_inv", *(f"{stem}.{scale}" for scale in _SCALES)]

    def _scales_of(self, name: str) -> str:
        """The name of the scales of a tensor in 8 bits or less."""
        stem = name.removesuffix("weight")
        scales = [candidate for candidate in dict.fromkeys(self._names(name)) if candidate in self._tensors]
        if len(scales) > 1:
            raise ModelError(
                f"{self._checkpoint.model_id!r} holds two scales for {name}: {scales[0]} and {scales[1]}",
                hint="which of them is read is left to chance: fetch or convert the checkpoint again",
            )
        if scales:
            return scales[0]
        siblings = sorted(sibling for sibling in self._tensors if sibling != name and sibling.startswith(stem))
        others = f"; {and_more(siblings)} stand beside it" if siblings else ""
        raise ModelError(
            f"{self._checkpoint.model_id!r} holds {name} in {self._tensors[name].dtype} without scales under a "
            f"name that {_version()} reads ({', '.join(_SCALES)}){others}",
            hint="without scales it would load as wrong weights: fetch or convert the checkpoint again",
        )

    def _check_grid(self, name: str, scales: str) -> bool:
        """Refuses a grid of another shape than the tensor's; says whether its last blocks are smaller."""
        tensor, grid = self._tensors[name], self._tensors[scales].shape
        block, shape = self._block, tensor.shape
        if tensor.dtype in _PACKED:
            block, shape = _PACKED_BLOCK, (*shape[:-1], 2 * shape[-1])
        single = self._tensors[scales].numbers == 1
        if single and (len(grid) < 2 or block is None):
            return False  # one scale for the whole tensor
        if block is None or len(shape) < 2:
            # One scale for each expert of a fused tensor: [8, 1, 1] beside [8, 256, 128], as transformers has it.
            expected: tuple[int, ...] = (*shape[:-2], 1, 1) if len(shape) > 2 else ()
        else:
            expected = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
        if grid != expected:
            blocks = "one block" if block is None else f"blocks of {block[0]} x {block[1]}"
            raise ModelError(
                f"the scales {scales} of {self._checkpoint.model_id!r} have the shape {list(grid)}, where "
                f"{list(shape)} in {blocks} needs {list(expected)}",
                hint="weight_block_size in config.json is not that of the weights, or they are broken",
            )
        if block is None:
            return False
        pairs = zip(shape[-2:], block, expected[-2:], strict=True)
        return any(count > 1 and size % part for size, part, count in pairs)

    def _refuse_scales_of_plain_tensors(self) -> None:
        for scales in self._tensors:
            if not scales.endswith("_scale_inv"):
                continue
            name = scales.removesuffix("_scale_inv")
            if name in self._tensors and self._tensors[name].dtype not in (*_FLOATS, *_PACKED):
                raise ModelError(
                    f"{self._checkpoint.model_id!r} holds the scales {scales} beside {name} in "
                    f"{self._tensors[name].dtype}, which needs none and would be multiplied by them",
                    hint="it was dequantised in part: convert the checkpoint again",
                )

    def _unreadable(self, ragged: list[str]) -> ModelError:
        shape, block = self._tensors[ragged[0]].shape, self._block or _PACKED_BLOCK
        return shared_refusal(
            f"{_version()} reads FP8 weights here only where blocks of {block[0]} x {block[1]} divide them, but "
            f"{ragged[0]} of {self._checkpoint.model_id!r} is {shape[-2]} x {shape[-1]}{_others(ragged)}",
            "write a copy in bfloat16, each block times its scale, as DeepSeek-V3's fp8_cast_bf16.py does, or run "
            "on a GPU that computes in FP8 (compute capability 8.9 and up)",
        )


def _others(names: list[str]) -> str:
    return f", and {len(names) - 1} more are as odd" if len(names) > 1 else ""


def _reads_ragged_blocks(quantiser: Any) -> bool:
    """Tries three rows in blocks of two: 5.23 does not keep to a config's blocks, and a later version may.

    How the conversion is called is transformers' own affair. Where it is no longer called so, nothing is known,
    and the load has to say.
    """
    import torch

    trial = copy.copy(quantiser)
    weight, scales = torch.ones(3, 2).to(torch.float8_e4m3fn), torch.tensor([[1.0], [2.0]])
    try:
        trial.quantization_config = copy.copy(quantiser.quantization_config)
        trial.quantization_config.weight_block_size = (2, 2)
        operation = trial.get_load_operations()["dequantize"](trial)
        plain = operation.convert({"weight": weight, "weight_scale_inv": scales})["weight"]
        return bool(torch.equal(plain.float(), torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])))
    except ValueError:  # its word for a shape that it does not divide
        return False
    except Exception:  # another protocol
        return True
