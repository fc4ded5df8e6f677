"""Whether a config's values are such that its model can surely be built, without trying.

Where they are not, building it says what is wrong with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_DTYPES = (None, "bfloat16", "float16", "float32")
_ACTIVATIONS = (
    None, "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "sigmoid", "silu", "sqrtsoftplus", "swigluoai",
)  # fmt: skip
_ROTATIONS = ("axial", "default", "yarn")
_ACTIVATION = re.compile(r".*_act|activation_function|scoring_func|output_gate_type")
# What is divided by, or multiplied into a shape that nothing could pass. The rotated part of a head, which is all
# that MLA calls head_dim, may be empty.
_EXTENT = re.compile(r"(?!(?:qk_rope_)?head_dim).*(?:_dim|_size|_heads|_rank|_groups|_mult|_count)")
# Numbers that count from the end, or name no token.
_SIGNED = re.compile(r".*(?:_id|_index|_layer)")


def is_usual(config: Any, text: Any) -> bool:
    """Whether nothing in ``config``, nor in ``text`` of its language model, could keep it from being built."""
    numbers = text.to_dict()
    padding = numbers["pad_token_id"]
    if padding is not None and not 0 <= padding < numbers["vocab_size"]:
        return False
    if numbers.get("head_dim") == 0 and not numbers.get("qk_nope_head_dim"):
        return False
    return all(_is_usual(key, value) for key, value in _entries(config.to_dict()))


def _entries(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, and those inside of them; how positions are rotated is one value."""
    for key, value in part.items():
        yield str(key), value
        if isinstance(value, Mapping) and key != "rope_parameters":
            yield from _entries(value)


def _is_usual(key: str, value: Any) -> bool:
    if key in ("dtype", "torch_dtype"):
        return value in _DTYPES
    if key == "rope_parameters":
        return value is None or _is_rotation(value)
    if _ACTIVATION.fullmatch(key):
        return value in _ACTIVATIONS
    if type(value) is not int:
        return True
    return value > 0 or bool(_SIGNED.fullmatch(key)) or (value == 0 and not _EXTENT.fullmatch(key))


def _is_rotation(parameters: Any) -> bool:
    """Whether they are of a known kind and positive; some families have them for each type of layer."""
    if not isinstance(parameters, Mapping):
        return False
    kinds = [value for value in parameters.values() if isinstance(value, Mapping)]
    if kinds and len(kinds) == len(parameters):
        return all(map(_is_rotation, kinds))
    values = [value for key, value in parameters.items() if key not in ("rope_type", "type", "mrope_section")]
    numeric = all(isinstance(value, bool | int | float) and (value is False or value > 0) for value in values)
    return parameters.get("rope_type") in _ROTATIONS and numeric
