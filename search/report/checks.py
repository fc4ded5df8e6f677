"""A plan's losses measured again, as eval keeps them beside the plan and the report shows them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import PlanError
from ...system.documents import first_fault, read_json
from ..plan.file import prefix_beside
from ..plan.schema import Finite, HeldOutRecord, Plan, Sha256, Timestamp

_LARGEST_FILE = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Check(_Section):
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


class CheckRecord(_Section):
    """The latest check on each group of windows of the plan whose content has the hash ``plan_sha256``."""

    schema_version: Literal[1] = 1
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

    def as_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def check_file(plan: Path) -> Path:
    """Where the checks of the plan in the file ``plan`` are: evaluation.json for plan.json."""
    return plan.with_name(f"{prefix_beside(plan.stem)}evaluation.json")


def plan_sha256(plan: Plan) -> str:
    """The hash of a plan's file, whose text follows from its content."""
    return hashlib.sha256(plan.as_json().encode()).hexdigest()


def read_checks(path: Path) -> CheckRecord | None:
    """The checks in ``path``, of whatever plan; None if there is no such file.

    Raises:
        PlanError: it cannot be read, or is not what eval writes.
    """
    try:
        return CheckRecord.model_validate(read_json(path, PlanError, _LARGEST_FILE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        field, fault = first_fault(error)
        raise PlanError(
            f"{str(path)!r} is not what eval writes: {field or 'it'}: {fault}",
            hint="run eval again once it is moved elsewhere",
        ) from None


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
