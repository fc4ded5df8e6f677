"""Prefill times of a plan's pattern, as bench writes them beside the plan and the report shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..plan.beside import Record, Section, file_beside, read_record
from ..plan.schema import Sha256

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class PrefillTime(Section):
    """One prefill: the median over repetitions, and the part of it that indexers take."""

    seconds: Seconds
    indexer_share: Share


class PrefillPoint(Section):
    """A context length in tokens, all full and under the plan; None where it did not fit."""

    context: Count
    all_full: PrefillTime | None
    plan: PrefillTime | None

    @property
    def speedup(self) -> float | None:
        """How many times faster the plan is."""
        return self.all_full.seconds / self.plan.seconds if self.all_full and self.plan else None


class TimesRecord(Record):
    """Of which pattern and model times are, and how they were taken on which device."""

    model: str
    config_sha256: Sha256
    pattern: str
    device: str
    dtype: str
    indexer: str
    attention: str
    random_weights: bool
    repeats: Count


class PrefillRecord(TimesRecord):
    """What bench measured of one pattern on one device."""

    versions: dict[str, str]
    points: list[PrefillPoint]


def prefill_file(plan: Path) -> Path:
    """Where the times of the plan in the file ``plan`` are: bench.json for plan.json."""
    return file_beside(plan, "bench.json")


def read_prefills(path: Path, pattern: str) -> PrefillRecord | None:
    """The times in ``path``; None if there is no such file or it is about another pattern.

    Raises:
        PlanError: it cannot be read, or is not what bench writes.
    """
    record = read_record(path, PrefillRecord, "bench", "run bench again, or remove it")
    return record if record is not None and record.pattern == pattern else None
