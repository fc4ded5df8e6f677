"""Reads and writes plan files through one check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import PlanError, one_line
from ...system.documents import first_fault, read_json
from ...system.files import is_there, write_atomically
from .consistency import check_consistency
from .place import hub_plan
from .schema import CHECKSUM, SCHEMA, Plan, content_checksum
from .upgrade import STEPS, upgraded

_LARGEST_FILE = 8 << 20


def prefix_beside(stem: str) -> str:
    """How files begin that stand beside the plan of that stem: not at all for plan.json, else ``STEM-``."""
    return "" if stem == "plan" else f"{stem}-"


def plan_file(path: Path) -> Path:
    """The file of the plan ``path``: itself, the plan.json in a run's folder, or a copy of one on the hub.

    Raises:
        PlanError: a hub repository that cannot be fetched, or holds no plan.
    """
    if is_there(path):
        return path / "plan.json" if path.is_dir() else path
    return hub_plan(path) or path


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
    version: Any = document.get("schema_version") if isinstance(document, dict) else None
    older = type(version) is int and version in STEPS
    stated = computed = None
    # Version 1 has no checksum: one that stands there is refused as a field that it never had.
    if isinstance(document, dict) and version != 1:
        stated = document.pop(CHECKSUM, None)
        computed = content_checksum(document)
    if older:
        document = upgraded(document, version)
    plan = check_plan(document, repr(str(path)), hint="search again, or restore the file")
    if stated != computed:
        raise PlanError(
            f"{str(path)!r}, field {CHECKSUM}: not that of its content, which was changed or damaged",
            hint="restore the file, or search again: a journal gives its plan back at once",
        )
    return plan


def write_plan(path: Path, plan: Plan) -> None:
    """Writes ``plan`` to ``path``, whole or not at all, once it has passed the check that reading it makes.

    Raises:
        PlanError: the plan contradicts itself; nothing is written.
        OutputError: the file cannot be written.
    """
    write_atomically(path, plan_text(plan))


def plan_text(plan: Plan) -> str:
    """The text of the plan's file, which reads back as the same plan.

    Raises:
        PlanError: the plan contradicts itself, so that no reader would take the file.
    """
    text = plan.as_json()
    document = json.loads(text)
    del document[CHECKSUM]
    check_plan(document, "the plan to be written")
    return text


def check_plan(document: Any, name: str, hint: str | None = None) -> Plan:
    """The plan in ``document``, if its version is read here and its fields agree.

    Whatever becomes a plan passes this check: what is read, what is to be written and what a cut makes.

    Args:
        document: a plan without its checksum, as JSON has it or as ``Plan.model_dump`` gives it.
        name: of the plan, for errors.
        hint: how to mend a plan whose fields are wrong.

    Raises:
        PlanError: of another schema version, or inconsistent; names the field.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA:
        stated = "no plan schema version" if version is None else f"plan schema version {version!r}"
        remedy = "search again with this version" if version is not None else "give a plan.json that search wrote"
        raise PlanError(f"{name} has {stated}, this program reads {SCHEMA}", hint=remedy)
    try:
        plan = Plan.model_validate(document)
        check_consistency(plan)
    except ValidationError as error:
        field, fault = first_fault(error)
        raise PlanError(f"{name}{f', field {field}' if field else ''}: {fault}", hint=hint) from None
    except ValueError as error:
        raise PlanError(f"{name}: {one_line(str(error))}", hint=hint) from None
    return plan


def check_indexers(plan: Plan) -> None:
    """Refuses to run a plan whose losses are with distilled indexers, where its checkpoint has others.

    Raises:
        PlanError: names the command that makes a checkpoint that has them.
    """
    if plan.lacks_indexers:
        raise PlanError(
            "the plan was searched with distilled indexers, and its checkpoint does not have them, so that its "
            "losses do not hold",
            hint="make a checkpoint that has them with indexcache distill PLAN --out DIR, and give DIR",
        )
