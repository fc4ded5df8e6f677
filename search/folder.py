"""A run's folder: plan.json, the frozen tokens and the report, each written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import OutputError, PlanError
from ..files import is_there, write_atomically
from .plan import Plan, read_plan
from .prefills import PrefillRecord, prefill_file, read_prefills
from .report import render

PLAN_FILE = "plan.json"
TOKENS_FILE = "windows.safetensors"
# What runs and cuts write; nothing else in a folder is touched.
_OURS = ("plan.", "plan-", TOKENS_FILE, "report.", "curve.", "overlap.", "prefill.", "bench.")


def check_writable(folder: Path) -> None:
    """Tries to write in ``folder``, so that a search does not end in a folder it cannot write to; leaves nothing.

    Raises:
        OutputError: it cannot.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    probe = folder / ".writable"
    write_atomically(probe, b"")
    probe.unlink(missing_ok=True)
    for each in made:
        each.rmdir()


def save_run(folder: Path, plan: Plan, tokens: bytes) -> Path | None:
    """Writes a run to ``folder``, the plan last.

    A run of other content that stands there is moved aside, tokens and all, so that it can still be
    evaluated. Returns the folder it was moved to.

    Raises:
        OutputError: a file cannot be written.
    """
    moved = _move_aside(folder, plan)
    write_atomically(folder / TOKENS_FILE, tokens)
    try:
        prefills = read_prefills(prefill_file(folder / PLAN_FILE), plan.result.pattern)
    except PlanError:  # a broken bench.json must not cost the search
        prefills = None
    write_report(folder, plan, prefills=prefills)
    write_atomically(folder / PLAN_FILE, plan.as_json())
    return moved


def save_cut(plan: Plan, source: Path, out: Path | None) -> Path:
    """Writes a plan that was cut from the one in ``source``, with its tokens beside it; its path.

    Without ``out`` it stands beside ``source``, named by what it keeps.

    Raises:
        OutputError: ``out`` is no place for a plan, or cannot be written.
    """
    target = out or source.with_name(f"{source.stem}-{plan.result.kept}of{plan.result.sites}.json")
    _check_place(target)
    tokens, beside = source.parent / plan.tokens.file, target.parent / plan.tokens.file
    if target.parent.resolve() != source.parent.resolve() and tokens.is_file():
        content = tokens.read_bytes()
        if is_there(beside) and beside.read_bytes() != content:
            raise OutputError(f"{str(beside)!r} holds another plan's tokens", hint="give --out another folder")
        write_atomically(beside, content)
    write_atomically(target, plan.as_json())
    return target


def _check_place(target: Path) -> None:
    """Refuses to put a plan where other files stand, or where a run will put other files."""
    name = target.name
    if not name.endswith(".json") or name == "bench.json" or name.endswith("-bench.json"):
        raise OutputError(f"{str(target)!r} is no name for a plan", hint="give --out one such as plan-half.json")
    if is_there(target):
        try:
            read_plan(target)
        except PlanError:
            raise OutputError(f"{str(target)!r} is there and no plan", hint="give --out another name") from None


def write_report(
    folder: Path, plan: Plan, name: str = "plan", prefills: PrefillRecord | None = None
) -> list[Path]:
    """Renders the report's files into ``folder``.

    They are called report.md, report.html and curve.svg for plan.json, and after the plan's ``name`` for others.
    ``prefills`` are the plan's prefill times, where bench has measured them.
    """
    stem = "" if name == "plan" else f"{name}-"
    written = []
    for file, text in render(plan, stem, prefills).items():
        write_atomically(folder / file, text)
        written.append(folder / file)
    return written


def _move_aside(folder: Path, plan: Plan) -> Path | None:
    standing = folder / PLAN_FILE
    if not standing.exists():
        return None
    try:
        old = read_plan(standing)
    except PlanError:
        stamp = "unreadable"
    else:
        if _without_timing(old) == _without_timing(plan):
            return None
        stamp = old.timing.finished.replace(":", "").replace("-", "")
    aside = _unused(folder, f"replaced-{stamp}")
    try:
        aside.mkdir()
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name.startswith(_OURS):
                path.replace(aside / path.name)
    except OSError as error:
        raise OutputError(f"the old run cannot be moved to {str(aside)!r}: {error.strerror}") from error
    return aside


def _unused(folder: Path, name: str) -> Path:
    """``name`` in ``folder``, numbered where it stands there already."""
    names = (name, *(f"{name}-{number}" for number in range(2, 1_000_000)))
    return next(path for path in (folder / each for each in names) if not path.exists())


def _without_timing(plan: Plan) -> object:
    document = json.loads(plan.as_json())
    del document["timing"]
    return document
