"""Every error a user can meet, each with its exit code and hint; text of unknown origin made one safe line.

IndexcacheError (2)
 ├─ PatternError      a string that is not a pattern for this model
 ├─ SettingError      an option or a recipe field with an impossible value
 ├─ DatasetError      text that cannot be read, or too little of it
 ├─ WindowError       a window length at which nothing is measured
 ├─ ModelError        a checkpoint that cannot be found, read or searched
 │   ├─ CacheError    a key-value cache that does not say how much it holds
 │   └─ StorageError  weights that cannot be read any more while they are measured
 ├─ PlanError         a plan file that cannot be read or cut as asked
 ├─ IdentityError     a plan or a journal that was made for other weights, tokens, ...
 ├─ JournalError      a journal that cannot be read, or is not there to resume from
 ├─ ExportError       an engine that cannot take the plan
 ├─ OutputError       a file that cannot be written
 ├─ ServerError       a server that cannot be asked, or whose answers say nothing
 ├─ MeasurementError  losses that are not numbers
 ├─ GateError (1)     a check that ran and failed
 ├─ BusyError         a run's folder that another process writes to
 ├─ StoppedRunError (75)      stopped by a signal with everything kept that was measured
 ├─ LostProcessError (75)     another of several processes ended
 └─ InterruptedRunError (128 + the signal's number)  stopped by a signal where there is nothing to go on from
"""

from __future__ import annotations

import codecs
import json
import os
import re
import textwrap
import unicodedata
from collections.abc import Mapping
from typing import ClassVar, TextIO

# Controls, invisible ones such as those that turn the direction of reading, half characters, line ends.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LONGEST = 2000
# What remains readable where a terminal has no Unicode.
_SPELLED = {"±": "+/-", "…": "..."}


def steers(character: str) -> bool:
    """Whether a terminal would do something else with ``character`` than show it."""
    return unicodedata.category(character) in _STEERING


def one_line(text: str) -> str:
    """``text`` on one line: white space joined, what does not print escaped, the middle of the longest cut."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    # Not str.split, which takes controls such as FS for white space and would hide them.
    text = re.sub(r"[ \t\r\n]+", " ", text).strip(" ")
    return "".join(character if character.isprintable() else escaped(character) for character in text)


def terminal_width(stream: TextIO) -> int | None:
    """How many columns the terminal has that ``stream`` writes to; None where it is none."""
    try:
        if not stream.isatty():
            return None
        setting = os.environ.get("COLUMNS", "")
        if setting.isdecimal() and len(setting) < 6:
            width = int(setting)
        else:
            width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # closed, or a terminal in name only
        return 80
    return width or 80


def wrapped(text: str, stream: TextIO) -> str:
    """``text`` in lines that end at words, as wide as the terminal; unchanged where ``stream`` is none.

    A path or a pattern is never broken, so that it can be copied.
    """
    width = terminal_width(stream)
    if width is None or len(text) <= width:
        return text
    return textwrap.fill(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def escaped(character: str) -> str:
    """``character`` in ASCII as JSON spells it, so that a document stays one: ``\\u001b``."""
    return json.dumps(character)[1:-1]


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unencodable = error.object[error.start : error.end]
    return "".join(_SPELLED.get(character, escaped(character)) for character in unencodable), error.end


def spelling_handler() -> str:
    """The error handler of streams that spells what their encoding lacks: ``+/-`` for ``±``, else escapes."""
    codecs.register_error("indexcache-spelled", _spell)
    return "indexcache-spelled"


PAGE = "docs/troubleshooting.md"
"""The document that explains messages; it comes with the package."""
# Modules whose warnings belong to a section of their own, the nearest first; the others' stand together.
_WARNING_SECTIONS = {
    "commands.job.windows": "windows",
    "commands.job.session": "journals",
    "commands.job.command": "options",
    "commands.export": "engines",
    "search.export": "engines",
    "system.locking": "files",
}


_FILE_SECTIONS = {"system.documents": "files", "system.files": "files"}


def warning_section(module: str) -> str:
    """The section of ``PAGE`` for warnings that ``module`` gives."""
    return _nearest(_WARNING_SECTIONS, module) or "warnings"


def warning(line: str, module: str) -> str:
    """The warning ``line`` of ``module`` as it is printed, with the section that explains it."""
    return f"warning: {line} [{PAGE}#{warning_section(module)}]"


def _nearest(sections: Mapping[str, str], module: str) -> str | None:
    """The section of the longest of ``sections``' module names that ``module`` is or lies in."""
    inside = f"{module.partition('.')[2]}."
    names = [name for name in sections if inside.startswith(f"{name}.")]
    return sections[max(names, key=len)] if names else None


class IndexcacheError(Exception):
    """A problem that the user can mend; printed as one line, never as a traceback.

    Args:
        message: what is wrong and where.
        hint: how to mend it; the class's own hint where none is given.
    """

    exit_code: int = 2
    default_hint: ClassVar[str] = ""
    shared: bool = False
    """Whether all of several processes raise it alike, so that one of them prints it for all."""
    alone: bool = False
    """Whether this process cannot reach the others, so that it prints the error whatever its rank."""
    section: ClassVar[str] = "unexpected-errors"
    """The section of ``PAGE`` that explains it; "" where nothing is to be explained."""
    sections: ClassVar[Mapping[str, str]] = {}
    """Sections of those that some modules raise, by the modules' names in the package."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(one_line(message))
        self.hint = self.default_hint if hint is None else hint

    def line(self) -> str:
        """The message and the hint as one line, safe to show whatever they quote."""
        return f"{self} ({one_line(self.hint)})" if self.hint else str(self)

    @classmethod
    def section_of(cls, module: str) -> str:
        """The section for what ``module`` raises; what reads and writes files has one, whoever asked it to."""
        return _nearest({**_FILE_SECTIONS, **cls.sections}, module) or cls.section

    def told(self) -> str:
        """The line that is printed: what is wrong, what helps, and where more is said."""
        link = self.link()
        return f"{self.line()} [{link}]" if link else self.line()

    def link(self) -> str:
        """Where it is explained, by the class and the module that raised it; "" where nothing is to be."""
        trace = self.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        section = self.section_of(trace.tb_frame.f_globals.get("__name__", "")) if trace else self.section
        return f"{PAGE}#{section}" if section else ""

    def as_json(self) -> dict[str, object]:
        """The document that ``--json`` prints on failure."""
        return {
            "error": {
                "type": type(self).__name__,
                "message": str(self),
                "hint": one_line(self.hint),
                "see": self.link(),
                "exit_code": self.exit_code,
            }
        }


class PatternError(IndexcacheError):
    """A string that is not a pattern for this model."""

    section = "patterns"
    shared = True
    default_hint = "a pattern has one F or S per site and opens with F"


class SettingError(IndexcacheError):
    """An option or a recipe field with an impossible value."""

    section = "options"
    sections: ClassVar[Mapping[str, str]] = {
        "system.launching": "several-processes",
        "system.rendezvous": "several-processes",
        "search.stages": "pipeline-stages",
        "search.export": "engines",
        "commands.export_pair": "engines",
        "commands.traffic": "prices",
    }
    shared = True


class DatasetError(IndexcacheError):
    """Text that cannot be read, or too little of it."""

    section = "text"
    sections: ClassVar[Mapping[str, str]] = {
        "calibrate.frozen": "files",
    }
    shared = True


class WindowError(IndexcacheError):
    """A window length at which nothing is measured."""

    section = "windows"
    sections: ClassVar[Mapping[str, str]] = {
        "dsa.long": "memory",
        "commands.job.measure": "memory",
    }
    shared = True


class ModelError(IndexcacheError):
    """A checkpoint that cannot be found, read or searched."""

    section = "config"
    sections: ClassVar[Mapping[str, str]] = {
        "dsa.checkpoint.hub": "finding-a-checkpoint",
        "dsa.checkpoint.stored": "weights",
        "dsa.checkpoint.load": "weights",
        "dsa.stream": "weights",
        "dsa.checks": "self-check",
        "dsa.distil": "distilling",
        "commands.distil": "distilling",
        "dsa.model": "models-under-a-plan",
        "dsa.long": "models-under-a-plan",
        "dsa.caches": "models-under-a-plan",
        "commands.apply": "models-under-a-plan",
    }


class CacheError(ModelError):
    """A key-value cache that does not say how much it holds."""


class StorageError(ModelError):
    """Weights that cannot be read any more while they are measured."""

    section = "weights"


class PlanError(IndexcacheError):
    """A plan file that cannot be read or cut as asked."""

    section = "plans"
    sections: ClassVar[Mapping[str, str]] = {
        "search.price": "prices",
        "commands.price": "prices",
    }
    shared = True


class IdentityError(IndexcacheError):
    """A plan or a journal that was made for other weights, tokens, ..."""

    section = "other-weights-or-text"
    shared = True


class JournalError(IndexcacheError):
    """A journal that cannot be read, or is not there to resume from."""

    section = "journals"
    shared = True


class ExportError(IndexcacheError):
    """An engine that cannot take the plan."""

    section = "engines"
    shared = True


class OutputError(IndexcacheError):
    """A file that cannot be written."""

    section = "files"
    shared = True


class ServerError(IndexcacheError):
    """A server that cannot be asked, or whose answers say nothing."""

    section = "asking-a-server"
    shared = True


class BusyError(IndexcacheError):
    """A run's folder that another process writes to."""

    section = "journals"
    shared = True


class MeasurementError(IndexcacheError):
    """Losses that are not numbers.

    ``sites`` are those that were tried, where it is about sites; a search knows their layers' names.
    """

    section = "losses"
    sections: ClassVar[Mapping[str, str]] = {
        "dsa.stream": "memory",
        "commands.bench": "memory",
        "commands.bench_decode": "memory",
        "dsa.distil": "distilling",
        "search.distil": "distilling",
    }
    sites: tuple[int, ...] = ()


class GateError(IndexcacheError):
    """A check that ran and failed.

    ``has_document`` says whether ``--json`` printed what was measured before; else it prints the error.
    """

    section = "checks-that-failed"
    exit_code = 1
    shared = True
    has_document = True


class StoppedRunError(IndexcacheError):
    """Stopped by a signal with everything kept that was measured."""

    section = "journals"
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

    section = "several-processes"
    exit_code = 75
    shared = True
    default_hint = "see what ended it; a search goes on with the same command"


class InterruptedRunError(IndexcacheError):
    """Stopped by a signal where there is nothing to go on from."""

    section = ""
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
    sentence = lines[0]
    for line in lines[1:]:
        # A line that ends so says nothing without the next.
        if not sentence.endswith((":", ",", "of")):
            break
        sentence = f"{sentence} {line}"
    return sentence[:300]
