"""What lies in a folder of runs: of each its model, what it keeps, its loss increase, its state and its age."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ...errors import IndexcacheError
from ...evaluate import CALIBRATION
from ...system.files import is_there
from ...system.locking import is_locked
from ..plan.file import read_plan
from ..plan.schema import MeasuredPattern, Plan
from ..run.folder import PLAN_FILE
from ..run.journal import JOURNAL_FILE, read_journal
from ..run.records import JournalContent

State = Literal["finished", "stopped", "running", "damaged"]

_DEEPEST = 4


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        folder: where it is.
        state: finished, or stopped where its plan is not complete; running where a process holds its lock.
        modified: when its plan or its journal was last written, in seconds since 1970.
        plan: None where there is none that can be read.
        step: of a run without a plan, how many removals the sparsest pattern that was measured has.
        sites: how many sites its patterns have; None where nothing tells.
        problem: what is wrong with it; "" where nothing is.
    """

    folder: Path
    state: State
    modified: float
    plan: Plan | None = None
    step: int | None = None
    sites: int | None = None
    problem: str = ""

    @property
    def when(self) -> str:
        """``modified`` as plans write times."""
        return datetime.fromtimestamp(self.modified, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def increase(self) -> MeasuredPattern | None:
        """The plan's loss increase: held out, or in sample where it was not checked."""
        if self.plan is None:
            return None
        return self.plan.result if self.plan.heldout is None else self.plan.heldout.plan


def runs_in(folder: Path) -> list[Run]:
    """The runs in ``folder`` and below it, by their places; a broken one says what is wrong and stops nothing."""
    return [_run(place) for place in sorted(_run_folders(folder, _DEEPEST))]


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that hold a plan or a journal; what cannot be looked into holds none."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    if any(entry.name in (PLAN_FILE, JOURNAL_FILE) for entry in entries):
        yield folder
    for entry in entries:
        # A link could lead back up.
        if depth and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _run_folders(Path(entry.path), depth - 1)


def _run(folder: Path) -> Run:
    running, modified = is_locked(folder), _modified(folder)
    plan, problem = None, ""
    if is_there(folder / PLAN_FILE) or not is_there(folder / JOURNAL_FILE):
        try:
            plan = read_plan(folder / PLAN_FILE)
        except IndexcacheError as error:
            problem = str(error)
    if plan is not None and plan.complete:
        whole: State = "running" if running else "finished"
        return Run(folder, whole, modified, plan, sites=len(plan.model.site_layers))
    content, journal_problem = _journal(folder)
    if running and not problem:  # a line may be half written at this moment
        journal_problem = ""
    problem = problem or journal_problem
    state: State = "running" if running else "damaged" if problem else "stopped"
    if plan is not None:
        return Run(folder, state, modified, plan, sites=len(plan.model.site_layers), problem=problem)
    step, sites = _progress(content)
    return Run(folder, state, modified, None, step, sites, problem)


def _modified(folder: Path) -> float:
    times = [(folder / name).lstat().st_mtime for name in (PLAN_FILE, JOURNAL_FILE) if is_there(folder / name)]
    return max(times, default=0.0)


def _journal(folder: Path) -> tuple[JournalContent | None, str]:
    try:
        stored = read_journal(folder / JOURNAL_FILE)
    except IndexcacheError as error:
        return None, str(error)
    return (None if stored is None else stored.content), ""


def _progress(content: JournalContent | None) -> tuple[int | None, int | None]:
    """How many sites are shared in the sparsest pattern that the search measured, and how many sites there are."""
    patterns = {} if content is None else content.losses.get((CALIBRATION, False), {})
    shared = [pattern.count("S") for pattern, losses in patterns.items() if losses]
    return (max(shared), len(next(iter(patterns)))) if shared else (None, None)
