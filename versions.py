"""The versions of what a measurement depends on."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")


@cache
def library_versions() -> dict[str, str]:
    """Python's and each library's version, ``unknown`` where one is not installed; triton's only where it is."""
    versions = {"python": python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    with suppress(PackageNotFoundError):  # CPU builds of torch come without
        versions["triton"] = version("triton")
    return versions


def computing_versions() -> dict[str, str | None]:
    """Those that a loss depends on: torch, transformers, triton, and Python without its patch level."""
    versions = library_versions()
    python = ".".join(versions["python"].split(".")[:2])
    return {"python": python} | {name: versions.get(name) for name in ("torch", "transformers", "triton")}
