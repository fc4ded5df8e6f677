"""The runs command: a line for each run in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..errors import SettingError
from ..search.report.words import increase
from ..search.upkeep.runs import Run, runs_in
from ..system.console import duration, new_console, print_line, print_table
from ..system.exits import print_result


def runs(folder: Path) -> list[Run]:
    """The runs in a folder.

    Raises:
        SettingError: no such folder.
    """
    if not folder.is_dir():
        raise SettingError(
            f"{str(folder)!r} is no folder", hint="give the folder that holds runs, such as outputs"
        )
    return runs_in(folder)


def show(listed: list[Run], folder: Path, as_json: bool) -> None:
    """Prints the runs, on stdout."""
    if as_json:
        print_result({"folder": str(folder), "runs": [run_document(run) for run in listed]})
        return
    console = new_console()
    if not listed:
        print_line(console, f"no runs in {folder}: indexcache search writes them")
        return
    table, now = Table(box=box.SIMPLE_HEAD), time.time()
    for name in ("run", "model"):
        table.add_column(name, overflow="fold")  # a long name goes on below, where it can still be read
    for name in ("kept", "increase", "state", "age"):
        table.add_column(name, no_wrap=True)
    for run in listed:
        plan = run.plan
        kept = "" if plan is None else f"{plan.result.kept} of {plan.result.sites}"
        model = "" if plan is None else plan.model.id
        age = duration(max(0.0, now - run.modified))
        table.add_row(_name(run, folder), model, kept, _increase(run), _state(run), age)
    print_table(console, table)
    for run in listed:
        if run.problem:
            print_line(console, f"{_name(run, folder)}: {run.problem}")


def _name(run: Run, folder: Path) -> str:
    """Where the run is in ``folder``."""
    return str(run.folder.relative_to(folder))


def _increase(run: Run) -> str:
    if run.increase is None:
        return ""
    return increase(run.increase) + ("" if run.plan is None or run.plan.heldout else ", in sample")


def _state(run: Run) -> str:
    if run.plan is not None and not run.plan.complete:
        return f"{run.state} after choosing"
    if run.step is not None and run.state in ("stopped", "running"):
        return f"{run.state} at step {run.step} of {(run.sites or 1) - 1}"
    return run.state


def run_document(run: Run) -> dict[str, Any]:
    """A run as JSON."""
    plan, measured = run.plan, run.increase
    return {
        "folder": str(run.folder),
        "model": None if plan is None else plan.model.id,
        "kept": None if plan is None else plan.result.kept,
        "sites": run.sites,
        "increase": None if measured is None else measured.delta,
        "low": None if measured is None else measured.low,
        "high": None if measured is None else measured.high,
        "held_out": plan is not None and plan.heldout is not None,
        "state": run.state,
        "step": run.step,
        "modified": run.when,
        "problem": run.problem or None,
    }
