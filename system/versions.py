"""The versions of what a measurement depends on."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from packaging.version import Version

# The lowest and the newest release that the tests were run with; what is pinned in between is in constraints.txt.
# pyproject.toml's ranges begin at the lowest, and ``make test-versions`` runs both ends.
TESTED = {
    "python": ("3.11", "3.13"),
    "torch": ("2.11", "2.13.0"),
    "transformers": ("5.18.0", "5.24.0"),
}

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


def is_tested(name: str) -> bool:
    """Whether the installed release of one of ``TESTED`` lies in the range that the tests were run with."""
    lowest, newest = TESTED[name]
    installed = library_versions()[name]
    return installed != "unknown" and _release(lowest) <= _release(installed)[:3] <= _widened(newest)


def untested_versions() -> str | None:
    """A line that names what runs here and lies outside of ``TESTED``; None where nothing does."""
    outside = []
    for name, (lowest, newest) in TESTED.items():
        installed = library_versions()[name]
        if installed != "unknown" and not is_tested(name):
            outside.append(f"{name} {installed} (tested: {lowest}{f' to {newest}' if newest != lowest else ''})")
    if not outside:
        return None
    return (
        f"not tested with {', '.join(outside)}: a release may change losses; the self-check of search notices some"
    )


def _release(version_text: str) -> tuple[int, ...]:
    return Version(version_text).release


def _widened(newest: str) -> tuple[int, ...]:
    """The newest release with any patch level, which only mends."""
    return (*_release(newest)[:2], 1 << 30)


def computing_versions() -> dict[str, str | None]:
    """Those that a loss depends on: torch, transformers, triton, and Python without its patch level."""
    versions = library_versions()
    python = ".".join(versions["python"].split(".")[:2])
    return {"python": python} | {name: versions.get(name) for name in ("torch", "transformers", "triton")}
