"""The command line of what keeps plans fresh: diff, verify, runs, report and env."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .job.options import (
    JsonFlag,
    PickleFlag,
    PlanPath,
    PlanPaths,
    QuietFlag,
    TrustFlag,
    described,
    flag,
    place,
    recipe_options,
)
from .job.start import leave_to_main, reach, working

TOLERANCE = 0.005
"""Nats per token that a plan may surely have lost unasked: a perplexity half a per cent higher."""

NewPlanPath = Annotated[
    Path, typer.Argument(metavar="NEW", help="The plan to compare with it.", show_default=False)
]
OldPlanPath = Annotated[
    Path, typer.Argument(metavar="OLD", help="A plan, as search wrote it.", show_default=False)
]
_TEXT = ("dataset", "dataset_subset", "dataset_split", "dataset_revision", "column")


def diff(
    old: OldPlanPath,
    new: NewPlanPath,
    fail_on_change: Annotated[bool, flag("--fail-on-change", "Exit with 1 where a layer's role changed.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare two plans: roles of layers, loss at each budget, and what else differs. Needs no model."""
    leave_to_main()
    from . import diff as diff_command

    difference = diff_command.diff(old, new)
    diff_command.show(difference, as_json)
    diff_command.hold(difference, fail_on_change)


@recipe_options(
    *("max_memory", "max_host_memory", "max_delta", "gate", "confidence", "window", "windows", "beyond_positions"),
    *_TEXT,
    defaults={
        **{"confidence": "the plan's", "dataset": "the plan's frozen tokens", "dataset_split": "the plan's"},
        **{"window": "the plan's", "windows": "as many as the plan has held out"},
    },
    helps={
        "max_delta": "search again where the plan's loss increase may be larger, nats per token",
        "window": "measure unseen windows of so many tokens",
        "windows": "how many unseen windows",
        "dataset": "measure unseen windows of this text: local file or folder, or hub name",
        "confidence": "of intervals",
    },
)
def verify(
    plan_path: PlanPath,
    fields: dict[str, Any],
    model: Annotated[str | None, described("The new checkpoint: local folder or hub id.")] = None,
    tolerance: Annotated[
        float,
        described(f"Nats per token that may surely be lost before a new search is asked for [{TOLERANCE:g}]."),
    ] = TOLERANCE,
    swaps: Annotated[
        int, typer.Option(min=0, max=1000, help="Patterns one swap away to measure too, the nearest first.")
    ] = 4,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Say whether an old plan holds on a new checkpoint, from a few evaluations on its own held-out tokens.

    Exits with 0 where it holds, with 1 where a new search is due, and with 2 where it cannot be told.
    """
    from ..search.plan.file import plan_file, read_plan
    from .job.settings import room_of, trust_of
    from .verify_settings import verify_settings

    path = plan_file(plan_path)
    plan = read_plan(path)
    settings = verify_settings(plan, model, tolerance, swaps, fields)
    reach(model, None)
    with working(quiet) as reporter:
        from . import verify as verify_command
        from . import verify_table
        from .job.planned import open_planned

        planned = open_planned(plan, model, trust_of(trust_remote_code, allow_pickle))
        outcome = verify_command.verify(planned, path, settings, room_of(fields), reporter)
    verify_table.show(outcome, as_json)
    outcome.hold()


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder to look in.")] = Path("outputs"),
    as_json: JsonFlag = False,
) -> None:
    """List the runs in a folder: model, what is kept, the loss increase, state and age."""
    leave_to_main()
    from . import runs as runs_command

    runs_command.show(runs_command.runs(folder), folder, as_json)


def env(as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Print versions, machine and settings for a bug report; never a key or a token."""
    leave_to_main()
    from . import environment

    variables = dict(os.environ)
    with working(quiet, loads_model=False, loads_libraries=False) as reporter:
        description = environment.describe(variables, reporter)
    environment.show(description, as_json)


def report(
    plan_paths: PlanPaths,
    out: Annotated[Path | None, place("Folder for the files [the plan's]; of several plans, the file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Render a plan's report.md, report.html and curve.svg again, or compare several plans; prints the paths."""
    leave_to_main()
    from . import report as report_command

    report_command.show(report_command.report(plan_paths, out), as_json)


UPKEEP_COMMANDS = {
    "diff": (diff, ("indexcache diff outputs/old/plan.json outputs/tiny/plan.json --fail-on-change",)),
    "verify": (verify, ("indexcache verify outputs/tiny/plan.json --model ./new-checkpoint",)),
    "runs": (runs, ("indexcache runs outputs",)),
    "report": (report, ("indexcache report outputs/tiny/plan.json", "indexcache report A B --out both.html")),
    "env": (env, ("indexcache env",)),
}
"""Each command by its name, with examples of it."""
