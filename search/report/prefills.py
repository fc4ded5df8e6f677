"""Prefill times of a plan's pattern, as bench writes them beside the plan and the report shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import PlanError
from ...system.documents import first_fault, read_json
from ..plan.file import prefix_beside

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
_LARGEST_FILE = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PrefillTime(_Section):
    """One prefill: the median over repetitions, and the part of it that indexers take."""

    seconds: Seconds
    indexer_share: Share


class PrefillPoint(_Section):
    """A context length in tokens, all full and under the plan; None where it did not fit."""

    context: Count
    all_full: PrefillTime | None
    plan: PrefillTime | None

    @property
    def speedup(self) -> float | None:
        """How many times faster the plan is."""
        return self.all_full.seconds / self.plan.seconds if self.all_full and self.plan else None


class PrefillRecord(_Section):
    """What bench measured of one pattern on one device."""

    schema_version: Literal[1]
    model: str
    config_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    pattern: str
    device: str
    dtype: str
    indexer: str
    attention: str
    random_weights: bool
    repeats: Count
    versions: dict[str, str]
    points: list[PrefillPoint]

    def as_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def prefill_file(plan: Path) -> Path:
    """Where the times of the plan in the file ``plan`` are: bench.json for plan.json."""
    return plan.with_name(f"{prefix_beside(plan.stem)}bench.json")


def read_prefills(path: Path, pattern: str) -> PrefillRecord | None:
    """The times in ``path``; None if there is no such file or it is about another pattern.

    Raises:
        PlanError: it cannot be read, or is not what bench writes.
    """
    try:
        record = PrefillRecord.model_validate(read_json(path, PlanError, _LARGEST_FILE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        field, fault = first_fault(error)
        raise PlanError(
            f"{str(path)!r} is not what bench writes: {field or 'it'}: {fault}",
            hint="run bench again, or remove it",
        ) from None
    return record if record.pattern == pattern else None
