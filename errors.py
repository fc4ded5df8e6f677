"""Every error a user can meet, each with its exit code and the hint that mends it.

IndexcacheError (2)
 ├─ PatternError      a string that is not a pattern for this model
 ├─ SettingError      an option or a recipe field with an impossible value
 ├─ DatasetError      text that cannot be read, or too little of it
 ├─ WindowError       a window length at which nothing is measured
 ├─ ModelError        a checkpoint that cannot be found, read or searched
 ├─ PlanError         a plan file that cannot be read or cut as asked
 ├─ IdentityError     a plan that was made for other weights or tokens
 ├─ ExportError       an engine that cannot take the plan
 ├─ OutputError       a file that cannot be written
 ├─ MeasurementError  losses that are not numbers
 └─ GateError (1)     a check that ran and failed
"""

from __future__ import annotations

from typing import ClassVar


class IndexcacheError(Exception):
    """A problem the user can mend; printed as one line, never as a traceback.

    Args:
        message: what is wrong and where.
        hint: how to mend it; the class's own hint where none is given.
    """

    exit_code: ClassVar[int] = 2
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.hint = self.default_hint if hint is None else hint

    def line(self) -> str:
        """The message and the hint as one line."""
        return f"{self} ({self.hint})" if self.hint else str(self)

    def as_json(self) -> dict[str, object]:
        """The document that ``--json`` prints on failure."""
        return {
            "error": {
                "type": type(self).__name__,
                "message": str(self),
                "hint": self.hint,
                "exit_code": self.exit_code,
            }
        }


class PatternError(IndexcacheError):
    """A string that is not a pattern for this model."""

    default_hint = "a pattern has one F or S per site and opens with F"


class SettingError(IndexcacheError):
    """An option or a recipe field with an impossible value."""


class DatasetError(IndexcacheError):
    """Text that cannot be read, or too little of it."""


class WindowError(IndexcacheError):
    """A window length at which nothing is measured."""


class ModelError(IndexcacheError):
    """A checkpoint that cannot be found, read or searched."""


class PlanError(IndexcacheError):
    """A plan file that cannot be read or cut as asked."""


class IdentityError(IndexcacheError):
    """A plan that was made for other weights or tokens."""


class ExportError(IndexcacheError):
    """An engine that cannot take the plan."""


class OutputError(IndexcacheError):
    """A file that cannot be written."""


class MeasurementError(IndexcacheError):
    """Losses that are not numbers."""


class GateError(IndexcacheError):
    """A check that ran and failed."""

    exit_code = 1


def first_line(error: Exception) -> str:
    """What another library's error says, cut to one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
