"""Versions of engines: which ranges a version is in, and which version a newer one is judged by."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ...errors import SettingError
from .support import Engine


def parsed_version(engine: Engine, text: str | None) -> Version | None:
    """The version ``text`` of ``engine``; None where none was given, or nothing depends on it.

    Raises:
        SettingError: ``text`` is no version.
    """
    if text is None or not depends_on_version(engine):
        return None
    try:
        return Version(text)
    except InvalidVersion:
        raise SettingError(
            f"{text!r} is no version of {engine.title} that can be looked up",
            hint="give a release such as 0.33.0, or leave --engine-version out",
        ) from None


def depends_on_version(engine: Engine) -> bool:
    """Whether it is known of any family from which version of ``engine`` on it shares."""
    return any(support.versions for support in engine.families.values())


def in_range(version: Version | None, ranges: str) -> bool:
    """Whether ``version`` is in one of the ranges, or is not known."""
    return version is None or any(
        SpecifierSet(specifiers).contains(version, prereleases=True) for specifiers in ranges.split("|")
    )


def touches(version: Version | None, ranges: str) -> bool:
    """As ``in_range``; a candidate, a development build or a rebuild of a release is taken for that release."""
    return in_range(version, ranges) or (version is not None and in_range(Version(version.base_version), ranges))


def judged_version(engine: Engine, version: Version | None) -> Version | None:
    """``version``, or the last one looked at where it is newer: what held there is taken to hold."""
    return Version(engine.looked_at) if version and is_newer(engine, version) else version


def is_newer(engine: Engine, version: Version) -> bool:
    """Whether ``version`` came out after the last one of ``engine`` that was looked at."""
    return bool(engine.looked_at) and Version(version.base_version) > Version(
        Version(engine.looked_at).base_version
    )


def range_in_words(versions: str) -> str:
    """``>=1.2`` and ``>1.2`` as a sentence says them."""
    return f"{versions[2:]} or later" if versions.startswith(">=") else f"a version after {versions[1:]}"
