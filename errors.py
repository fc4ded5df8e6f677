"""Every error a user can meet, each with its exit code and the hint that mends it.

IndexcacheError (2)
 ├─ PatternError      a string that is not a pattern for this model
 ├─ SettingError      an option or a recipe field with an impossible value
 ├─ DatasetError      text that cannot be read, or too little of it
 ├─ WindowError       a window length at which nothing is measured
 ├─ ModelError        a checkpoint that cannot be found, read or searched
 ├─ PlanError         a plan file that cannot be read or cut as asked
 ├─ IdentityError     a plan or a journal that was made for other weights, tokens, ...
 ├─ JournalError      a journal that cannot be read, or is not there to resume from
 ├─ ExportError       an engine that cannot take the plan
 ├─ OutputError       a file that cannot be written
 ├─ MeasurementError  losses that are not numbers
 ├─ GateError (1)     a check that ran and failed
 ├─ BusyError         a run's folder that another process writes to
 ├─ StoppedRunError (75)      stopped by a signal with everything kept that was measured
 ├─ LostProcessError (75)     another of several processes ended
 └─ InterruptedRunError (128 + the signal's number)  stopped by a signal where there is nothing to go on from
"""

from __future__ import annotations

from typing import ClassVar

from .plain_text import one_line


class IndexcacheError(Exception):
    """A problem the user can mend; printed as one line, never as a traceback.

    Args:
        message: what is wrong and where.
        hint: how to mend it; the class's own hint where none is given.
    """

    exit_code: int = 2
    default_hint: ClassVar[str] = ""
    shared: bool = False
    """Raised on all of several processes alike, so that one of them tells the user."""
    alone: bool = False
    """Raised where no other process can be reached that would tell the user."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(one_line(message))
        self.hint = self.default_hint if hint is None else hint

    def line(self) -> str:
        """The message and the hint as one line, safe to show whatever they quote."""
        return f"{self} ({one_line(self.hint)})" if self.hint else str(self)

    def as_json(self) -> dict[str, object]:
        """The document that ``--json`` prints on failure."""
        return {
            "error": {
                "type": type(self).__name__,
                "message": str(self),
                "hint": one_line(self.hint),
                "exit_code": self.exit_code,
            }
        }


class PatternError(IndexcacheError):
    """A string that is not a pattern for this model."""

    shared = True
    default_hint = "a pattern has one F or S per site and opens with F"


class SettingError(IndexcacheError):
    """An option or a recipe field with an impossible value."""

    shared = True


class DatasetError(IndexcacheError):
    """Text that cannot be read, or too little of it."""

    shared = True


class WindowError(IndexcacheError):
    """A window length at which nothing is measured."""

    shared = True


class ModelError(IndexcacheError):
    """A checkpoint that cannot be found, read or searched."""


class PlanError(IndexcacheError):
    """A plan file that cannot be read or cut as asked."""

    shared = True


class IdentityError(IndexcacheError):
    """A plan or a journal that was made for other weights, tokens, ..."""

    shared = True


class JournalError(IndexcacheError):
    """A journal that cannot be read, or is not there to resume from."""

    shared = True


class ExportError(IndexcacheError):
    """An engine that cannot take the plan."""

    shared = True


class OutputError(IndexcacheError):
    """A file that cannot be written."""

    shared = True


class BusyError(IndexcacheError):
    """A run's folder that another process writes to."""

    shared = True


class MeasurementError(IndexcacheError):
    """Losses that are not numbers.

    ``sites`` are those that were tried, where it is about sites; a search knows their layers' names.
    """

    sites: tuple[int, ...] = ()


class GateError(IndexcacheError):
    """A check that ran and failed."""

    exit_code = 1


class StoppedRunError(IndexcacheError):
    """Stopped by a signal with everything kept that was measured."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command later goes on
    shared = True

    def as_json(self) -> dict[str, object]:
        """The document that ``--json`` prints."""
        return {
            "stopped": True,
            "message": str(self),
            "hint": one_line(self.hint),
            "exit_code": self.exit_code,
        }


class LostProcessError(IndexcacheError):
    """Another of several processes ended, or cannot be reached."""

    exit_code = 75
    shared = True
    default_hint = "see what ended it; a search goes on with the same command"


class InterruptedRunError(IndexcacheError):
    """Stopped by a signal where there is nothing to go on from."""

    exit_code = 130
    shared = True

    def __init__(self, signal_number: int = 2) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + signal_number


def first_line(error: Exception) -> str:
    """What another library's error says, as one line: its first sentence or so, 300 characters at most."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = lines[0]
    for line in lines[1:]:
        # A line that ends so says nothing without the next.
        if not said.endswith((":", ",", "of")):
            break
        said = f"{said} {line}"
    return said[:300]
