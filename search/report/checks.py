"""A plan's losses measured again, as eval keeps them beside the plan and the report shows them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from ...errors import PlanError
from ..gate import GateKind
from ..plan.beside import Record, Section, file_beside, read_record
from ..plan.schema import Finite, HeldOutRecord, Plan, ProbesRecord, Sha256, Timestamp


class Measurement(Section):
    """When and how something was measured, and how it was held to a limit: ``confidence`` is of intervals."""

    when: Timestamp
    model: str
    device: str
    dtype: str
    versions: dict[str, str]
    passed: bool | None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    gate: GateKind | None = None


class Check(Measurement):
    """One measurement of a plan's pattern, all full and uniform interleaving on one group of windows."""

    windows: Annotated[int, Field(ge=1)]
    losses: HeldOutRecord
    max_delta: Finite | None


class ProbesCheck(Measurement):
    """One measurement of the same patterns on probes."""

    scores: ProbesRecord
    max_probe_delta: Finite | None


class UnseenCheck(Check):
    """A check on other windows than the plan's, of documents that its search has not seen, and on probes in them.

    ``length`` is in tokens, ``sha256`` is that of the windows and probes.
    """

    length: Annotated[int, Field(ge=2)]
    dataset: str
    subset: str | None
    split: str | None
    column: str | None
    revision: str | None
    sha256: Sha256
    probes: ProbesCheck | None

    @property
    def text(self) -> tuple[int, str, str | None, str | None, str | None]:
        """What tells it from checks on other windows: their length and where their text is from."""
        return self.length, self.dataset, self.subset, self.split, self.column


class CheckRecord(Record):
    """The latest checks of the plan whose content has the hash ``plan_sha256``.

    ``heldout``, ``calibration`` and ``probes`` are on its own windows; ``others`` holds one for each length and
    text, the latest last.
    """

    plan_sha256: Sha256
    pattern: str
    heldout: Check | None = None
    calibration: Check | None = None
    probes: ProbesCheck | None = None
    others: list[UnseenCheck] = Field(default_factory=list)

    @model_validator(mode="after")
    def _of_one_pattern(self) -> CheckRecord:
        for check in (self.heldout, self.calibration, *self.others):
            if check is not None and check.losses.plan.pattern != self.pattern:
                raise ValueError("losses.plan.pattern is not pattern")
        for probes in (self.probes, *(check.probes for check in self.others)):
            if probes is not None and probes.scores.pattern != self.pattern:
                raise ValueError("scores.pattern is not pattern")
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


def with_check(plan: Plan, path: Path, group: str, check: Check, probes: ProbesCheck | None = None) -> CheckRecord:
    """The checks of ``plan`` in ``path`` with the one of ``group`` replaced, and that on probes if there is one.

    Those of another plan are dropped.

    Raises:
        PlanError: ``path`` holds something else than checks, which is not to be lost.
    """
    measured = {group: check} | ({} if probes is None else {"probes": probes})
    return _checks_to_keep(plan, path).model_copy(update=measured)


def with_unseen_check(plan: Plan, path: Path, check: UnseenCheck) -> CheckRecord:
    """Likewise with the check on windows of the same length and text replaced."""
    before = _checks_to_keep(plan, path)
    others = [other for other in before.others if other.text != check.text]
    return before.model_copy(update={"others": [*others, check]})


def _checks_to_keep(plan: Plan, path: Path) -> CheckRecord:
    before = read_checks(path)
    if before is not None and (before.plan_sha256, before.pattern) == (plan_sha256(plan), plan.result.pattern):
        return before
    return CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern)
