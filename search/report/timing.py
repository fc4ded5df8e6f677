"""When a plan was made and how long it took, written beside it: the plan itself is the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..plan.beside import Record, read_record
from ..plan.schema import Count, NotNegative, Timestamp

TIMING_FILE = "timing.json"


class Timing(Record):
    """The time of all sessions that the journal knows; a search that was stopped has several.

    ``sittings`` is how many there were.
    """

    started: Timestamp
    finished: Timestamp
    seconds: NotNegative
    processes: Count
    sittings: Count


def now() -> str:
    """The present as plans and journals write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def timing_of(sessions: Sequence[tuple[str, float, int]]) -> Timing:
    """Sums up sessions, given by their starts, their seconds and their processes; the last one ends now."""
    return Timing(
        started=sessions[0][0],
        finished=now(),
        seconds=round(sum(seconds for _, seconds, _ in sessions), 1),
        processes=sessions[-1][2],
        sittings=len(sessions),
    )


def timing_file(plan: Path) -> Path:
    """Where the timing of the search is whose plan, or a cut of it, is in the file ``plan``."""
    return plan.with_name(TIMING_FILE)


def read_timing(path: Path) -> Timing | None:
    """The timing in ``path``; None if there is no such file.

    Raises:
        PlanError: it cannot be read, or is not what search writes.
    """
    return read_record(path, Timing, "search", "remove it")
