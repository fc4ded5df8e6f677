"""The cut command: another step of a searched plan, picked offline and written beside it or elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import wrapped
from ..search.plan.cut import cut as cut_plan
from ..search.plan.cut import cut_pair as cut_plans
from ..search.plan.file import plan_file, read_plan
from ..search.plan.schema import Plan
from ..search.price.memory import read_sizes, sizes_file, spared_line
from ..search.run.folder import PAIR_FILES, save_cut
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


def cut_pair(plan_path: Path, prefill_keep: float, decode_keep: float, folder: Path) -> list[tuple[Plan, Path]]:
    """Two plans for servers that prefill and servers that decode, and where they are written in ``folder``.

    Raises:
        PlanError: no plan, or no such pair of patterns in it.
        OutputError: they cannot be written.
    """
    path = plan_file(plan_path)
    plans = cut_plans(read_plan(path), prefill_keep, decode_keep)
    return [(plan, save_cut(plan, path, folder / name)) for plan, name in zip(plans, PAIR_FILES, strict=True)]


def show_pair(pair: Sequence[tuple[Plan, Path]], as_json: bool) -> None:
    """Prints the paths of the two plans, or the plans, on stdout."""
    if as_json:
        print_result({path.stem: json.loads(plan.as_json()) for plan, path in pair})
    else:
        print_result("\n".join(str(path) for _, path in pair))


def show(plan: Plan, path: Path, as_json: bool) -> None:
    """Prints the plan's path, or the plan, on stdout; what it spares, where that is known, on stderr."""
    sizes = read_sizes(sizes_file(path), plan)
    if sizes is not None and not as_json:
        typer.echo(wrapped(spared_line(sizes, plan), sys.stderr), err=True)
    print_result(plan.as_json().rstrip() if as_json else str(path))
