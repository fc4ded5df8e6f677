"""What commands leave beside a plan as small JSON files: one check for all of them, written or read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import PlanError
from ...system.documents import first_fault, read_json
from .file import prefix_beside

_LARGEST_FILE = 1 << 20


class Section(BaseModel):
    """A part of such a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Record(Section):
    """The content of such a file."""

    schema_version: Literal[1] = 1

    def as_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


R = TypeVar("R", bound=Record)


def file_beside(plan: Path, name: str) -> Path:
    """The file beside the plan in the file ``plan``: ``name`` for plan.json, ``STEM-name`` for other plans."""
    return plan.with_name(f"{prefix_beside(plan.stem)}{name}")


def read_record(path: Path, kind: type[R], command: str, hint: str) -> R | None:
    """The record in ``path``; None if there is no such file.

    Args:
        path: of the file.
        kind: of record.
        command: that writes such files.
        hint: what to do about a file that is something else.

    Raises:
        PlanError: it cannot be read, or is not what ``command`` writes; names the field.
    """
    try:
        return kind.model_validate(read_json(path, PlanError, _LARGEST_FILE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        field, fault = first_fault(error)
        raise PlanError(
            f"{str(path)!r} is not what {command} writes: {field or 'it'}: {fault}", hint=hint
        ) from None
