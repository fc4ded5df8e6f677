"""Plans of older schema versions, brought to the one that this program reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def upgraded(document: dict[str, Any], version: int) -> dict[str, Any]:
    """A plan's document, written under schema ``version``, as the present version says the same.

    What an older version does not have is said to be unknown and never guessed. The document is not checked here:
    a field that its version did not have stays where it is, and is refused with the rest that does not fit.

    Args:
        document: the file's content; it is not changed.
        version: a key of ``STEPS`` or the present version.
    """
    while version in STEPS:
        document = STEPS[version](document)
        version += 1
    return document


def _from_1(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 hashed whole weight files by name, did not say how many threads ran, and held its timing.

    Code that a checkpoint brings was not identified either: null, as where transformers' own code ran, so that
    such a checkpoint is refused by this field.
    """
    new = {name: value for name, value in document.items() if name != "timing"} | {"schema_version": 2}
    unsaid: dict[str, dict[str, Any]] = {
        "model": {"weights_hash": "files", "code_sha256": None},
        "run": {"threads": None},
    }
    for section, fields in unsaid.items():
        content = document.get(section)
        if isinstance(content, dict):
            unexpected = {f"{name} (not of version 1)": content[name] for name in fields if name in content}
            new[section] = content | fields | unexpected
    return new


def _from_2(document: dict[str, Any]) -> dict[str, Any]:
    """Version 2 chose by the LM loss alone, and had no intervals, divergences or probes."""
    new = {**document, "schema_version": 3}
    search = document.get("search")
    if isinstance(search, dict):
        unexpected = {"objective (not of version 2)": search["objective"]} if "objective" in search else {}
        new["search"] = search | {"objective": "loss"} | unexpected
    return new


STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""What takes a document from each older version to the next."""
