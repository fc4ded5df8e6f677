"""Whether a config.json tells a model's sites by itself, so that no model has to be built to know them."""

from __future__ import annotations

from typing import Any

from ...system.versions import is_tested
from .families import FAMILIES


def is_plain(content: dict[str, Any], trusts_code: bool) -> bool:
    """Whether the model is of a family in the table, run by a transformers that the tests were run with.

    Args:
        content: of config.json.
        trusts_code: whether code that the checkpoint brings may run: it may build anything.
    """
    kind = content.get("model_type")
    known = isinstance(kind, str) and kind.removesuffix("_text") in FAMILIES
    return known and is_tested("transformers") and not (trusts_code and content.get("auto_map"))
