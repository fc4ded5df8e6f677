"""The report command: a plan's pages and figures, rendered again, or several plans compared in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError, SettingError
from ..search.plan.file import plan_file, read_plan
from ..search.report.comparing.page import comparison
from ..search.report.comparing.plans import compared
from ..search.run.folder import render_beside
from ..system.exits import print_result
from ..system.files import write_atomically
from .job.start import warn_before_start

_PAGES = {".html": "comparison.html", ".md": "comparison.md"}


def report(plan_paths: Sequence[Path], out: Path | None) -> list[Path]:
    """Writes the pages to ``out``, the plan's folder by default; of several plans one file; their paths.

    Raises:
        PlanError: no plan, or one that is not valid.
        SettingError: several plans and no file for them, or one plan twice.
        OutputError: they cannot be written.
    """
    paths = [plan_file(path) for path in plan_paths]
    if len(paths) == 1:
        return render_beside(read_plan(paths[0]), paths[0], out, warn_before_start)
    if out is None:
        raise SettingError("several plans are compared in one file", hint="name it: --out comparison.html")
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise SettingError(f"{str(twice)!r} was given twice", hint="give plans that differ")
    return _compare(paths, out)


def _compare(paths: Sequence[Path], out: Path) -> list[Path]:
    """Writes what is compared to the file ``out``, or to comparison.html in the folder ``out``."""
    target = out / _PAGES[".html"] if out.is_dir() else out
    if target.suffix not in _PAGES:
        raise OutputError(
            f"{str(out)!r} is no name for a comparison", hint="give --out one such as comparison.html"
        )
    if target in paths:
        raise OutputError(f"{str(out)!r} is one of the plans", hint="give --out another name")
    plans = compared([(path, read_plan(path)) for path in paths], warn_before_start)
    write_atomically(target, comparison(plans, markdown=target.suffix == ".md"))
    return [target]


def show(paths: list[Path], as_json: bool) -> None:
    """Prints the paths, on stdout."""
    names = [str(path) for path in paths]
    print_result({"written": names} if as_json else "\n".join(names))
