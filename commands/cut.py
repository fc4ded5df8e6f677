"""The cut command: another step of a searched plan, picked offline and written beside it or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..search.plan.cut import cut as cut_plan
from ..search.plan.file import plan_file, read_plan
from ..search.plan.schema import Plan
from ..search.run.folder import save_cut
from ..system.exits import print_result


def cut(plan_path: Path, fields: Mapping[str, Any], out: Path | None) -> tuple[Plan, Path]:
    """The plan for another budget, and where it is written.

    Args:
        plan_path: a plan, or a run's folder.
        fields: ``keep`` or ``max_delta``.
        out: the file to write; beside the plan by default.

    Raises:
        PlanError: no plan, or the search did not go that far.
        OutputError: it cannot be written.
    """
    path = plan_file(plan_path)
    plan = cut_plan(read_plan(path), **fields)
    return plan, save_cut(plan, path, out)


def show(plan: Plan, path: Path, as_json: bool) -> None:
    """Prints the plan's path, or the plan, on stdout."""
    print_result(plan.as_json().rstrip() if as_json else str(path))
