"""The report command: a plan's pages and figures, rendered again."""

from __future__ import annotations

from pathlib import Path

from ..search.plan.file import plan_file, read_plan
from ..search.run.folder import render_beside
from ..system.exits import print_result
from .job.start import warn_before_start


def report(plan_path: Path, out: Path | None) -> list[Path]:
    """Writes the pages to ``out``, the plan's folder by default; their paths.

    Raises:
        PlanError: no plan, or one that is not valid.
        OutputError: they cannot be written.
    """
    path = plan_file(plan_path)
    return render_beside(read_plan(path), path, out, warn_before_start)


def show(paths: list[Path], as_json: bool) -> None:
    """Prints the paths, on stdout."""
    names = [str(path) for path in paths]
    print_result({"written": names} if as_json else "\n".join(names))
