"""Draws the loss-versus-sparsity curve of a plan as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from .plan import Measured, Plan

SEARCHED = "#0b6e99"
UNIFORM = "#c2571a"
_INK = "#3a3f45"


def loss_curve(plan: Plan) -> str:
    """An SVG element: loss increase over the sites that share, searched and uniform, with error bars."""
    # The object interface draws without pyplot's global state or a display.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "indexcache",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        sites = plan.result.sites
        full = Measured(
            kept=sites, pattern="F" * sites, loss=plan.search.baseline_loss, delta=0.0, standard_error=0.0
        )
        _line(axes, [full, *plan.search.uniform], sites, "uniform interleaving", UNIFORM, "s")
        _line(axes, [full, *plan.search.steps], sites, "searched", SEARCHED, "o")
        _dress(axes, plan)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _dress(axes: Any, plan: Plan) -> None:
    """Marks the step that was picked and labels the axes."""
    sites, shared = plan.result.sites, plan.result.sites - plan.result.kept
    axes.axvline(shared, color=_INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"this plan: {plan.result.kept} of {sites} kept",
        (shared, 1.02),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0) if shared > sites / 2 else (5, 0),
        textcoords="offset points",
        ha="right" if shared > sites / 2 else "left",
        va="bottom",
        color=_INK,
    )
    axes.axhline(0, color=_INK, linewidth=0.6)
    axes.set_xlabel(f"sites without an indexer (of {sites})")
    axes.set_ylabel("loss increase, nats per token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1))


def _line(axes: Any, points: Sequence[Measured], sites: int, label: str, colour: str, marker: str) -> None:
    axes.errorbar(
        [sites - each.kept for each in points],
        [each.delta for each in points],
        yerr=[each.standard_error or 0.0 for each in points],
        label=label,
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        capsize=2.5,
        elinewidth=1,
    )
