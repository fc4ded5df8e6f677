"""The table of patterns and their losses that search and eval print."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from ...search.plan.schema import MeasuredPattern
from ...search.report.pages import increase


def loss_table(
    sites: int,
    baseline_loss: float,
    patterns: Mapping[str, MeasuredPattern],
    heldout: Mapping[str, MeasuredPattern | None] | None = None,
    title: str = "increase, in sample",
) -> Table:
    """All full and ``patterns``, by the names that they have in the table.

    Args:
        sites: all of which are full in the baseline.
        baseline_loss: nats per token.
        patterns: on the same windows.
        heldout: the same patterns on held-out windows; None leaves the column out.
        title: of the column of loss increases: on windows that a search chose by they are too good.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("pattern")
    for name in ["kept", "loss", title, *(["increase, held out"] if heldout else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("all full", str(sites), f"{baseline_loss:.4f}")
    for name, measured in patterns.items():
        held_out = [increase(heldout.get(name))] if heldout else []
        table.add_row(name, str(measured.kept), f"{measured.loss:.4f}", increase(measured), *held_out)
    return table
