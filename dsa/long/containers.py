"""How much of the host's memory a container, or a job of a scheduler, leaves to this process: Linux's cgroups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Version 1 has a number, of pages that no machine has, where nothing is limited.
_UNLIMITED = 1 << 60
# Files of a group, by the version: its limits, what it has now, and what the kernel keeps of files for it: it
# gives that back when memory is asked for. The last limit of version 1 counts groups above that cannot be seen.
_FILES = {
    2: (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}
_ABOVE = "hierarchical_memory_limit"


@dataclass(frozen=True)
class Allowance:
    """Bytes of memory: all that a process may ever have with those in its group, and what they can still have."""

    whole: int
    free: int


def allowance(root: Path = Path("/")) -> Allowance | None:
    """What cgroups allow this process, by the tightest of its group and those above; None where none limits it.

    Sources: the kernel's admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.

    Args:
        root: of the file system with ``proc`` and the mounted groups.
    """
    limits = [limit for version, folder in _groups(root) if (limit := _limit_of(folder, version)) is not None]
    if not limits:
        return None
    return Allowance(min(limit.whole for limit in limits), min(limit.free for limit in limits))


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """The version and the folder of this process's groups, and of those above, as far as they are mounted here."""
    try:
        memberships = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text("utf-8").splitlines()
    except (OSError, ValueError):  # another system
        return
    paths = {
        2 if number == "0" else 1: path
        for number, controllers, path in (line.split(":", 2) for line in memberships if line.count(":") > 1)
        if number == "0" or "memory" in controllers.split(",")
    }
    for line in mounts:
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(" "), kind.split(" ")
        version = {"cgroup2": 2, "cgroup": 1}.get(kinds[0])
        if version is None or version not in paths or len(fields) < 5:
            continue
        if version == 1 and "memory" not in kinds[-1].split(","):
            continue
        mounted, folder = _plain(fields[3]), root / _plain(fields[4]).lstrip("/")
        inside = PurePosixPath(paths[version])
        # A container may see its own group alone, as the root of all, or under a name from outside.
        below = inside.relative_to(mounted) if inside.is_relative_to(mounted) else PurePosixPath()
        if ".." in below.parts:
            below = PurePosixPath()
        yield from ((version, folder / level) for level in (below, *below.parents))


def _limit_of(folder: Path, version: int) -> Allowance | None:
    """What a group allows; None where it limits nothing."""
    limit_files, usage_file, reclaimed = _FILES[version]
    counts = _counts(folder / "memory.stat")
    limits = [_number(folder / name) for name in limit_files] + [counts.get(_ABOVE)]
    limited = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
    used = _number(folder / usage_file)
    if not limited or used is None:
        return None
    used -= min(used, sum(counts.get(name, 0) for name in reclaimed))
    return Allowance(min(limited), max(0, min(limited) - used))


def _counts(path: Path) -> Mapping[str, int]:
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in path.read_text("ascii").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    return {}


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as in ``max``."""
    with suppress(OSError, ValueError):
        return int(path.read_text("ascii"))
    return None


def _plain(name: str) -> str:
    """A path of mountinfo, which writes blanks and the like as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), name)
