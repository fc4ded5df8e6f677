"""The versions of what a measurement depends on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")


@cache
def library_versions() -> dict[str, str]:
    """Python's and each library's version, ``unknown`` where one is not installed."""
    versions = {"python": python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def computing_versions() -> dict[str, str]:
    """Those that a loss depends on: torch, transformers, and Python without its patch level."""
    versions = library_versions()
    python = ".".join(versions["python"].split(".")[:2])
    return {"python": python, "torch": versions["torch"], "transformers": versions["transformers"]}
