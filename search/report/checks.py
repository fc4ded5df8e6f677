"""A plan's losses measured again, as eval keeps them beside the plan and the report shows them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from ...errors import PlanError
from ..plan.schema import Finite, HeldOutRecord, Plan, Sha256, Timestamp
from .beside import Record, Section, file_beside, read_record


class Check(Section):
    """One measurement of a plan's pattern, all full and uniform interleaving on one group of its windows."""

    when: Timestamp
    model: str
    device: str
    dtype: str
    windows: Annotated[int, Field(ge=1)]
    losses: HeldOutRecord
    max_delta: Finite | None
    passed: bool | None
    versions: dict[str, str]


class CheckRecord(Record):
    """The latest check on each group of windows of the plan whose content has the hash ``plan_sha256``."""

    plan_sha256: Sha256
    pattern: str
    heldout: Check | None = None
    calibration: Check | None = None

    @model_validator(mode="after")
    def _of_one_pattern(self) -> CheckRecord:
        for check in (self.heldout, self.calibration):
            if check is not None and check.losses.plan.pattern != self.pattern:
                raise ValueError("losses.plan.pattern is not pattern")
        return self


def check_file(plan: Path) -> Path:
    """Where the checks of the plan in the file ``plan`` are: evaluation.json for plan.json."""
    return file_beside(plan, "evaluation.json")


def plan_sha256(plan: Plan) -> str:
    """The hash of a plan's file, whose text follows from its content."""
    return hashlib.sha256(plan.as_json().encode()).hexdigest()


def read_checks(path: Path) -> CheckRecord | None:
    """The checks in ``path``, of whatever plan; None if there is no such file.

    Raises:
        PlanError: it cannot be read, or is not what eval writes.
    """
    return read_record(path, CheckRecord, "eval", "run eval again once it is moved elsewhere")


def checks_of(plan: Plan, path: Path) -> tuple[CheckRecord | None, str]:
    """The checks in ``path`` if they are of ``plan``, else None and why they are left out ("" for none there)."""
    try:
        record = read_checks(path)
    except PlanError as error:
        return None, error.line()
    if record is not None and (record.plan_sha256, record.pattern) != (plan_sha256(plan), plan.result.pattern):
        return None, f"{str(path)!r} is of another plan and left out: eval measures this one"
    return record, ""


def with_check(plan: Plan, path: Path, group: str, check: Check) -> CheckRecord:
    """The checks of ``plan`` in ``path`` with the one of ``group`` replaced; those of another plan are dropped.

    Raises:
        PlanError: ``path`` holds something else than checks, which is not to be lost.
    """
    before = read_checks(path)
    if before is None or (before.plan_sha256, before.pattern) != (plan_sha256(plan), plan.result.pattern):
        before = CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern)
    return before.model_copy(update={group: check})
