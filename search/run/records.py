"""The records of a journal, and what they hold put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..plan.schema import Count, Finite, NotNegative, RunIdentity, Timestamp

SCHEMA = 1

Identity = Mapping[str, object]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Header(_Record):
    """The first record: whose losses these are."""

    kind: Literal["journal"] = "journal"
    schema_version: Count = SCHEMA
    identity: dict[str, object]


class Began(_Record):
    """A process began to work on the search."""

    kind: Literal["began"] = "began"
    when: Timestamp
    processes: Count


class Ended(_Record):
    """It ended of its own accord, or was stopped, ``at`` seconds after it began; a killed one writes none."""

    kind: Literal["ended"] = "ended"
    at: NotNegative


class Ran(_Record):
    """How the model ran, known once it is loaded."""

    kind: Literal["ran"] = "ran"
    run: RunIdentity


class Overlap(_Record):
    """The share of keys that two sites select alike."""

    kind: Literal["overlap"] = "overlap"
    matrix: list[list[Finite]]


class Checked(_Record):
    """The self-check of this model passed."""

    kind: Literal["checked"] = "checked"


class Losses(_Record):
    """``sums[pattern][window]`` in nats, None for what is no number; ``at`` as for ``Ended``."""

    kind: Literal["losses"] = "losses"
    at: NotNegative
    group: str
    last_token: bool
    windows: list[Count]
    patterns: list[str]
    sums: list[list[Annotated[float, Field(allow_inf_nan=False)] | None]]


Record = Header | Began | Ended | Ran | Checked | Overlap | Losses
RECORDS: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@dataclass
class Kept:
    """What a journal holds, put together.

    Args:
        losses: summed losses by (group, last_token), pattern and window.
        checked: whether the model passed its self-check.
        sittings: when each process began, how many seconds it is known to have worked, and how many they were.
    """

    losses: dict[tuple[str, bool], dict[str, dict[int, float]]] = field(default_factory=dict)
    run: RunIdentity | None = None
    checked: bool = False
    overlap: list[list[float]] | None = None
    sittings: list[tuple[str, float, int]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Takes in the next record."""
        if isinstance(record, Losses):
            group = self.losses.setdefault((record.group, record.last_token), {})
            for pattern, sums in zip(record.patterns, record.sums, strict=True):
                measured = group.setdefault(pattern, {})
                for window, each in zip(record.windows, sums, strict=True):
                    measured[window] = float("nan") if each is None else each
        elif isinstance(record, Ran):
            self.run = record.run
        elif isinstance(record, Checked):
            self.checked = True
        elif isinstance(record, Overlap):
            self.overlap = record.matrix
        elif isinstance(record, Began):
            self.sittings.append((record.when, 0.0, record.processes))
        if isinstance(record, Losses | Ended) and self.sittings:
            when, _, processes = self.sittings[-1]
            self.sittings[-1] = (when, record.at, processes)

    @property
    def window_evaluations(self) -> int:
        """How many losses of a pattern on a window there are."""
        return sum(len(each) for group in self.losses.values() for each in group.values())


def losses_record(
    at: float,
    group: str,
    last_token: bool,
    windows: Sequence[int],
    patterns: Sequence[str],
    sums: Sequence[Sequence[float]],
) -> Losses:
    """A record of losses as they were measured, whether numbers or not."""
    finite = [[each if abs(each) < float("inf") else None for each in some] for some in sums]
    return Losses(
        at=at, group=group, last_token=last_token, windows=list(windows), patterns=list(patterns), sums=finite
    )
