"""The export command for two plans: servers that prefill, and servers that decode."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from ..errors import SettingError, wrapped
from ..search.export.remarks import Remark, worst_first
from ..search.export.support import Serving
from ..search.plan.file import read_plan
from ..search.run.folder import PAIR_FILES, PLAN_FILE
from ..system.exits import print_result
from .export import export_document, settings_for


def pair_in(folder: Path) -> tuple[Path, Path] | None:
    """The two plans that ``cut`` wrote to ``folder``; None where it holds a plan of its own, or no pair."""
    prefill, decode = (folder / name for name in PAIR_FILES)
    is_pair = prefill.is_file() and decode.is_file() and not (folder / PLAN_FILE).exists()
    return (prefill, decode) if is_pair else None


def export_pair(
    pair: tuple[Path, Path], engine: str, serving: Serving, force: bool, writes: bool, as_json: bool
) -> None:
    """Prints the settings of both kinds of servers on stdout; warnings, each once, on stderr.

    Raises:
        SettingError: a folder was to be written, which holds one config.json only.
        PlanError: one of them is no plan, or needs other weights.
        ExportError: the engine cannot run one of them.
    """
    if writes:
        raise SettingError("--write was given for two plans", hint=f"export {pair[0]} and {pair[1]} one by one")
    plans = {path.stem: read_plan(path) for path in pair}
    exported = {role: settings_for(plan, engine, serving, force) for role, plan in plans.items()}
    remarks: list[Remark] = []
    for settings in exported.values():
        remarks += [remark for remark in settings.warnings if remark not in remarks]
    for remark in worst_first(remarks):
        typer.echo(wrapped(f"{remark.severity}: {remark.text}", sys.stderr), err=True)
    if as_json:
        print_result({role: export_document(plans[role], settings, None) for role, settings in exported.items()})
        return
    sections = [f"# servers that {role}\n{settings.paste.rstrip()}" for role, settings in exported.items()]
    print_result("\n\n".join(sections))
