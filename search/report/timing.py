"""When a plan was made and how long it took, written beside it: the plan itself is the same each time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import PlanError
from ...system.documents import read_bytes
from ..plan.schema import Count, NotNegative, Timestamp

TIMING_FILE = "timing.json"
_LARGEST_FILE = 1 << 16


class Timing(BaseModel):
    """The time of all sessions that the journal knows; a search that was stopped has several.

    ``sittings`` is how many there were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: Literal[1] = 1
    started: Timestamp
    finished: Timestamp
    seconds: NotNegative
    processes: Count
    sittings: Count

    def as_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


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
    try:
        return Timing.model_validate_json(read_bytes(path, PlanError, _LARGEST_FILE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise PlanError(f"{str(path)!r} is not what search writes: {problem}", hint="remove it") from None
