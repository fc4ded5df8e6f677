"""The diff command: what changed from one plan to another, and whether the difference in loss is decided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..calibrate.frozen import thaw
from ..errors import GateError, IndexcacheError
from ..pattern import layer_ranges
from ..search.plan.file import plan_file, read_plan
from ..search.plan.schema import MeasuredPattern, Plan
from ..search.report.words import signed
from ..search.upkeep.difference import LossChange, PlanDifference, plan_difference
from ..search.upkeep.paired import KeptLosses, PairedLosses
from ..system.console import new_console, print_line, print_table
from ..system.exits import print_result

_SITES_A_ROW = 16


def diff(old_path: Path, new_path: Path) -> PlanDifference:
    """Compares two plans, window by window where both measured the same tokens and their journals are there.

    Raises:
        PlanError: no plan, or plans for models with other sites.
    """
    old_file, new_file = plan_file(old_path), plan_file(new_path)
    old, new = read_plan(old_file), read_plan(new_file)
    kept = KeptLosses(old, old_file.parent), KeptLosses(new, new_file.parent)
    return plan_difference(old, new, PairedLosses(*kept, documents_beside(new, new_file.parent)))


def documents_beside(plan: Plan, folder: Path) -> Mapping[str, tuple[int, ...]]:
    """By group, the document of each window of a plan's frozen tokens; nothing where those cannot be read."""
    try:
        windows = thaw(folder / plan.tokens.file, plan.tokens.sha256)
    except IndexcacheError:
        return {}
    return {name: windows.documents(name) for name in windows.groups}


def hold(difference: PlanDifference, fail_on_change: bool) -> None:
    """Ends with 1 where a change is to fail and a site's role is another.

    Raises:
        GateError: names the layers.
    """
    if fail_on_change and difference.changed_layers:
        layers = layer_ranges(difference.changed_layers)
        raise GateError(f"the role of layers {layers} changed, which --fail-on-change does not allow")


def show(difference: PlanDifference, as_json: bool) -> None:
    """Prints what differs, on stdout."""
    if as_json:
        print_result(difference_document(difference))
        return
    console, sites = new_console(), len(difference.old.model.site_layers)
    changed = difference.changed_layers
    print_line(console, f"old: keeps {difference.old.result.kept} of {sites}; {difference.old.model.id}")
    print_line(console, f"new: keeps {difference.new.result.kept} of {sites}; {difference.new.model.id}")
    for line in _strip(difference):
        print_line(console, line)
    where = f": layers {layer_ranges(changed)}" if changed else ""
    print_line(console, f"{len(changed)} of {sites} roles changed{where}")
    rows = [("held out, as picked", difference.heldout)] if difference.heldout is not None else []
    rows += [(f"keep {change.new.kept}, in sample", change) for change in difference.budgets]
    if rows:
        print_table(console, _loss_table(rows))
    else:
        print_line(console, "no budget below all full was measured by both")
    for name, (before, after) in difference.fields.items():
        print_line(console, f"{name}: {before} -> {after}")


def _strip(difference: PlanDifference) -> list[str]:
    """Both patterns over the sites' layers, blocks of ``_SITES_A_ROW``, and a mark below each that differs."""
    layers, changed = difference.old.model.site_layers, set(difference.changed_layers)
    old, new = difference.old.result.pattern, difference.new.result.pattern
    lines = []
    for first in range(0, len(layers), _SITES_A_ROW):
        part = slice(first, first + _SITES_A_ROW)
        rows = {"layer": list(map(str, layers[part])), "old": list(old[part]), "new": list(new[part])}
        if marks := ["x" if layer in changed else "" for layer in layers[part]]:
            rows |= {"changed": marks} if any(marks) else {}
        lines += [
            "",
            *(f"{name:<8}{''.join(f'{cell:>4}' for cell in row)}".rstrip() for name, row in rows.items()),
        ]
    return [*lines, ""]


def _loss_table(rows: list[tuple[str, LossChange]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("loss increase")
    for name in ("old", "new", "new less old", "pattern", ""):
        table.add_column(name, justify="right" if name and name != "pattern" else "left", no_wrap=True)
    for name, change in rows:
        pattern = "same" if change.old.pattern == change.new.pattern else "other"
        verdict = change.verdict + (", in pairs" if change.is_paired and change.verdict != "same" else "")
        table.add_row(
            name, signed(change.old.delta), signed(change.new.delta), difference_words(change), pattern, verdict
        )
    return table


def difference_words(change: LossChange) -> str:
    """New less old with its interval: ``+0.0030 (-0.0010 to 0.0070)``."""
    if change.low is None or change.high is None:
        return signed(change.delta)
    return f"{signed(change.delta)} ({change.low + 0.0:.4f} to {change.high + 0.0:.4f})"


def difference_document(difference: PlanDifference) -> dict[str, Any]:
    """What differs, as JSON."""
    return {
        "changed": bool(difference.changed_layers),
        "changed_layers": list(difference.changed_layers),
        "layers": difference.old.model.site_layers,
        "old": difference.old.result.pattern,
        "new": difference.new.result.pattern,
        "heldout": None if difference.heldout is None else change_document(difference.heldout),
        "budgets": [change_document(change) for change in difference.budgets],
        "fields": {name: {"old": old, "new": new} for name, (old, new) in difference.fields.items()},
    }


def change_document(change: LossChange) -> dict[str, Any]:
    """A difference of two loss increases, as JSON."""

    def measured(pattern: MeasuredPattern) -> dict[str, Any]:
        return pattern.model_dump(include={"kept", "pattern", "loss", "delta", "low", "high"})

    return {
        "old": measured(change.old),
        "new": measured(change.new),
        "difference": change.delta,
        "low": change.low,
        "high": change.high,
        "paired": change.is_paired,
        "verdict": change.verdict,
    }
