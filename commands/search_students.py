"""Students of a search with distilled indexers: how they are trained, and what journal and plan say of that."""

from __future__ import annotations

from ..dsa.distil.candidates import Students, single_sites
from ..dsa.distil.train import Settings, collect
from ..evaluate import LEARNING
from ..search.plan.schema import StudentsRecord
from ..search.run.records import Identity
from ..system.console import Reporter
from .job.measure import Loaded
from .job.prepare import Job

STEPS, ROWS, WINDOWS_A_STEP = 50, 128, 4


def identity(job: Job) -> Identity:
    """What losses with students depend on beside the model and the windows; nothing without students."""
    if not job.method.distils:
        return {}
    return {"students": f"{STEPS} steps of {WINDOWS_A_STEP} windows, {ROWS} rows of each of {_windows(job)}"}


def record(job: Job, students: int) -> StudentsRecord | None:
    """What the plan says of ``students``, so many; None without."""
    if not job.method.distils:
        return None
    return StudentsRecord(
        count=students, steps=STEPS, windows_a_step=WINDOWS_A_STEP, rows=ROWS, windows=_windows(job)
    )


def make(job: Job, loaded: Loaded, reporter: Reporter) -> Students | None:
    """Collects what students learn from, in one sweep over windows that judge nothing; None without students.

    Raises:
        MeasurementError: there is no room for what is to be stored.
        ModelError: indexers that cannot be trained.
    """
    if not job.method.distils:
        return None
    layers, windows = job.checkpoint.site_layers, job.windows.group(LEARNING).tolist()
    settings = Settings(STEPS, ROWS, WINDOWS_A_STEP, None, job.tokens.seed)
    reporter.doing(f"running {len(windows)} windows, all full, for indexers to learn from")
    stored = collect(loaded.model, layers, windows, single_sites(len(layers)), settings)

    def say(students: int) -> None:
        if students > 1:  # later steps need one or two
            reporter.say(f"distilling indexers for {students} segments, {STEPS} steps each")

    return Students(loaded.model, stored, settings, say)


def _windows(job: Job) -> int:
    return len(job.windows.group(LEARNING))
