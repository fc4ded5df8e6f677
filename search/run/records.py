"""The records of a journal, and what they hold put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ...evaluate import WindowLoss
from ..plan.schema import Count, Finite, NotNegative, RunIdentity, Timestamp

SCHEMA = 2

Identity = Mapping[str, object]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Header(_Record):
    """The first record: whose losses these are."""

    kind: Literal["journal"] = "journal"
    schema_version: Count = SCHEMA
    identity: dict[str, object]


class SessionStart(_Record):
    """A process, or several together, began to work on the search."""

    kind: Literal["began"] = "began"
    when: Timestamp
    processes: Count


class SessionEnd(_Record):
    """A session was over, or was stopped, ``at`` seconds after its start; a killed one writes no such record."""

    kind: Literal["ended"] = "ended"
    at: NotNegative


class RunRecord(_Record):
    """How the model ran, known once it is loaded."""

    kind: Literal["ran"] = "ran"
    run: RunIdentity


class OverlapRecord(_Record):
    """The share of keys that two sites select alike."""

    kind: Literal["overlap"] = "overlap"
    matrix: list[list[Finite]]


class LayerCostsRecord(_Record):
    """What each site costs under an earlier one's selection: ``costs[window][earlier][later]``."""

    kind: Literal["layer_costs"] = "layer_costs"
    surrogate: str
    costs: list[list[list[Finite]]]


class SelfCheckRecord(_Record):
    """The self-check of this model passed."""

    kind: Literal["checked"] = "checked"


Sums = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)] | None],
    Field(min_length=len(WindowLoss._fields), max_length=len(WindowLoss._fields)),
]


class LossesRecord(_Record):
    """``sums[pattern][window]``, each as ``WindowLoss`` lists it, None for what is no number; ``at`` as for
    ``SessionEnd``.
    """

    kind: Literal["losses"] = "losses"
    at: NotNegative
    group: str
    last_token: bool
    windows: list[Count]
    patterns: list[str]
    sums: list[list[Sums]]


Record = (
    Header
    | SessionStart
    | SessionEnd
    | RunRecord
    | SelfCheckRecord
    | OverlapRecord
    | LayerCostsRecord
    | LossesRecord
)
RECORDS: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@dataclass
class JournalContent:
    """What a journal holds, put together.

    Args:
        losses: summed losses by (group, last_token), pattern and window.
        run: how the model ran; None until a session has loaded it.
        checked: whether the model passed its self-check.
        overlap_matrix: ``[sites][sites]`` share of keys selected alike; None until a session has measured it.
        layer_costs: ``[windows][sites][sites]``, by the surrogate.
        sessions: of each its start, the seconds that it is known to have worked, and its number of processes.
    """

    losses: dict[tuple[str, bool], dict[str, dict[int, WindowLoss]]] = field(default_factory=dict)
    run: RunIdentity | None = None
    checked: bool = False
    overlap_matrix: list[list[float]] | None = None
    layer_costs: dict[str, list[list[list[float]]]] = field(default_factory=dict)
    sessions: list[tuple[str, float, int]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Takes in the next record."""
        if isinstance(record, LossesRecord):
            group = self.losses.setdefault((record.group, record.last_token), {})
            for pattern, sums in zip(record.patterns, record.sums, strict=True):
                measured = group.setdefault(pattern, {})
                for window, numbers in zip(record.windows, sums, strict=True):
                    measured[window] = WindowLoss(*(math.nan if sum_ is None else sum_ for sum_ in numbers))
        elif isinstance(record, RunRecord):
            self.run = record.run
        elif isinstance(record, SelfCheckRecord):
            self.checked = True
        elif isinstance(record, OverlapRecord):
            self.overlap_matrix = record.matrix
        elif isinstance(record, LayerCostsRecord):
            self.layer_costs[record.surrogate] = record.costs
        elif isinstance(record, SessionStart):
            self.sessions.append((record.when, 0.0, record.processes))
        # A killed session writes no end: it is known to have worked until its last losses.
        if isinstance(record, LossesRecord | SessionEnd) and self.sessions:
            when, _, processes = self.sessions[-1]
            self.sessions[-1] = (when, record.at, processes)

    @property
    def window_evaluations(self) -> int:
        """How many losses of a pattern on a window there are."""
        return sum(len(windows) for patterns in self.losses.values() for windows in patterns.values())


def losses_record(
    at: float,
    group: str,
    last_token: bool,
    windows: Sequence[int],
    patterns: Sequence[str],
    sums: Sequence[Sequence[WindowLoss]],
) -> LossesRecord:
    """A record of losses as they were measured, whether numbers or not."""
    # JSON knows no NaN and no infinity: None stands for both, which a search takes alike.
    numbers = [[[sum_ if math.isfinite(sum_) else None for sum_ in loss] for loss in losses] for losses in sums]
    return LossesRecord(
        at=at, group=group, last_token=last_token, windows=list(windows), patterns=list(patterns), sums=numbers
    )
