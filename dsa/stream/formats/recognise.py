"""Which format a checkpoint's weights are in, by its config, and whether its tensors bear that out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import ModelError, one_line
from ...checkpoint.config import Checkpoint
from ...checkpoint.stored.shards import TORCH_NAMES, Tensor
from ...checkpoint.stored.unread import and_more, unread
from . import blocks, compressed
from .blocks import BlockScaled
from .foreign import Foreign
from .quantised import FETCH_AGAIN, FLOATS, RESTORE, SMALL, StoredFormat

# Foreign formats whose own 8-bit numbers are integers: FP8 tensors beside them would load as wrong numbers.
_INTEGERS = ("bitsandbytes", "gptq", "awq", "mxfp4", "metal", "eetq")

# Types that safetensors has beside those that torch and quantised formats count alike.
_OTHERS = ("C64", "U16", "U32", "U64")

# Of a format's words, which may come from a config.
_LONGEST_WORDS = 150


def stored_format(settings: Mapping[str, Any] | None, model_id: str) -> StoredFormat | Foreign | None:
    """The format that a ``quantization_config`` names; None where there is none, and weights are plain.

    Args:
        settings: the ``quantization_config`` of config.json.
        model_id: whose it is, for messages.

    Raises:
        ModelError: it does not say which format it is of, or names impossible blocks.
    """
    if settings is None:
        return None
    method = _method(settings)
    if method is None:
        raise ModelError(
            f"the quantization_config of {model_id!r} has no quant_method", hint="restore its config.json"
        )
    if method in blocks.METHODS:
        block = _block(settings.get("weight_block_size", blocks.METHODS[method]), model_id)
        kept = settings.get("modules_to_not_convert")
        plain = tuple(name for name in kept if isinstance(name, str)) if isinstance(kept, list | tuple) else ()
        return BlockScaled(model_id, block, settings.get("expert_dtype") == "fp4", plain)
    if method == compressed.METHOD and (known := compressed.compressed_format(settings, model_id)):
        return known
    return Foreign(model_id, method, dict(settings))


def checkpoint_format(checkpoint: Checkpoint) -> StoredFormat | Foreign | None:
    """Likewise of a checkpoint: by the ``quantization_config`` of its config, or of its language model's.

    Raises:
        ModelError: see ``stored_format``.
    """
    for config in (checkpoint.config, checkpoint.text):
        settings = getattr(config, "quantization_config", None)
        if settings is not None:
            settings = settings if isinstance(settings, Mapping) else settings.to_dict()
            return stored_format(settings, checkpoint.model_id)
    return None


def quantised_run(checkpoint: Checkpoint) -> str | None:
    """How a checkpoint's quantised weights run, in words; None where they are plain.

    Raises:
        ModelError: see ``stored_format``.
    """
    known = checkpoint_format(checkpoint)
    if known is None:
        return None
    how = "dequantised" if isinstance(known, StoredFormat) else "as transformers loads it"
    return f"{one_line(known.words)[:_LONGEST_WORDS]}, {how}"


def check_tensors(
    checkpoint: Checkpoint, stored: Mapping[str, Tensor], known: StoredFormat | Foreign | None
) -> None:
    """Holds stored tensors, headers by name, against the format that the config names.

    Tensors that nobody reads are left out: layers that predict further tokens, towers, scales of activations.

    Args:
        checkpoint: whose they are.
        stored: all of its tensors.
        known: its format, from ``checkpoint_format``.

    Raises:
        ModelError: see ``StoredFormat.weights``; or numbers of 8 bits or less that the format does not have.
    """
    ignored = unread(stored, checkpoint, quantised=True)
    tensors = {name: tensor for name, tensor in stored.items() if name not in ignored}
    known_types = {*TORCH_NAMES, *SMALL, *_OTHERS}
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in known_types]:
        raise ModelError(
            f"{checkpoint.model_id!r} holds {and_more(strange)} in "
            f"{one_line(tensors[strange[0]].dtype)[:30]}, which is no type of numbers that is known here",
            hint=FETCH_AGAIN,
        )
    if isinstance(known, StoredFormat):
        known.check(tensors)
        return
    if isinstance(known, Foreign) and known.method not in _INTEGERS:
        return
    kinds = SMALL if known is None else FLOATS
    small = [name for name, tensor in tensors.items() if tensor.dtype in kinds]
    if small:
        claim = "has no quantization_config" if known is None else f"names the format {known.method!r}"
        raise ModelError(
            f"{checkpoint.model_id!r} holds {tensors[small[0]].dtype} tensors, {and_more(small)}, but its config "
            f"{claim}: without their scales they would load as wrong weights",
            hint=RESTORE,
        )


def _method(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method")
    if method is None:
        return "bitsandbytes" if settings.get("load_in_8bit") or settings.get("load_in_4bit") else None
    return str(getattr(method, "value", method))


def _block(value: Any, model_id: str) -> tuple[int, int] | None:
    if value is None:
        return None
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or any(type(number) is not int or number < 1 for number in numbers):
        raise ModelError(
            f"weight_block_size in the config of {model_id!r} is {value!r}, and no two positive integers",
            hint=RESTORE,
        )
    return numbers[0], numbers[1]
