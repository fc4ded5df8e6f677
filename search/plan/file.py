"""Reads and writes plan files through one check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import PlanError
from ...system.documents import first_fault, read_json
from ...system.files import is_there
from .schema import CHECKSUM, SCHEMA, Plan
from .upgrade import STEPS, upgraded

_LARGEST_FILE = 8 << 20


def plan_file(path: Path) -> Path:
    """``path``, or the plan.json in it where it is a run's folder."""
    return path / "plan.json" if is_there(path) and path.is_dir() else path


def read_plan(path: Path) -> Plan:
    """Reads and checks a plan file; one of an older schema version is brought to the present one.

    Raises:
        PlanError: missing, unreadable, of a schema version that is not known, or inconsistent; names the field.
    """
    path = plan_file(path)
    try:
        document = read_json(path, PlanError, _LARGEST_FILE)
    except FileNotFoundError:
        raise PlanError(f"plan {str(path)!r} does not exist", hint="indexcache search writes one") from None
    return _checked(document, path)


def _checked(document: Any, path: Path) -> Plan:
    version: Any = document.get("schema_version") if isinstance(document, dict) else None
    older = type(version) is int and version in STEPS
    if not older and version != SCHEMA:
        found = "no plan schema version" if version is None else f"plan schema version {version!r}"
        raise PlanError(
            f"{str(path)!r} has {found}, this program reads {SCHEMA}", hint="search again with this version"
        )
    document = upgraded(document, version)
    checksum = None if older else document.pop(CHECKSUM, None)  # version 1 had none
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        field, fault = first_fault(error)
        raise PlanError(
            f"{str(path)!r}{f', field {field}' if field else ''}: {fault}",
            hint="search again, or restore the file",
        ) from None
    if not older and checksum != plan.checksum():
        raise PlanError(
            f"{str(path)!r}, field {CHECKSUM}: not that of its content, which was changed or damaged",
            hint="restore the file, or search again: a journal gives its plan back at once",
        )
    return plan
