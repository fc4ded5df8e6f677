"""The table of patterns and their losses that search and eval print."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from ...search.plan.schema import MeasuredPattern
from ...search.report.words import increase, signed


def loss_table(
    sites: int,
    baseline_loss: float,
    patterns: Mapping[str, MeasuredPattern],
    in_sample: Mapping[str, MeasuredPattern] | None = None,
    title: str = "increase",
) -> Table:
    """All full and ``patterns``, by the names that they have in the table.

    Args:
        sites: all of which are full in the baseline.
        baseline_loss: nats per token.
        patterns: on the same windows.
        in_sample: of the same patterns on the windows that a search chose by, for a column that says so: they are
            too good; None leaves it out.
        title: of the column of loss increases, which have their intervals.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("pattern")
    for name in ["kept", "loss", title, *(["in sample"] if in_sample is not None else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("all full", str(sites), f"{baseline_loss:.4f}")
    for name, measured in patterns.items():
        calibration = (in_sample or {}).get(name)
        alone = [signed(calibration.delta)] if calibration is not None else []
        table.add_row(name, str(measured.kept), f"{measured.loss:.4f}", increase(measured), *alone)
    return table
