"""Draws a plan's loss-versus-sparsity curve and its overlap heatmap as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from ..plan.schema import MeasuredPattern, Plan
from .prefills import PrefillRecord

SEARCHED = "#0b6e99"
UNIFORM = "#c2571a"
OVERLAP = "#7a5ea8"
_INK = "#3a3f45"


def loss_curve(plan: Plan) -> str:
    """An SVG element: loss increase over the sites that share, searched and baselines, with error bars."""
    sites, search = plan.result.sites, plan.search
    full = plan.all_full

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _line(axes, [full, *search.uniform], sites, "uniform interleaving", UNIFORM, "s")
        if search.overlap:
            _line(axes, [full, *search.overlap], sites, "by overlap alone", OVERLAP, "^")
        _line(axes, [full, *search.steps], sites, "searched", SEARCHED, "o")
        _dress(axes, plan)

    return _svg(draw, (7.2, 3.9))


def overlap_heatmap(plan: Plan) -> str:
    """An SVG element: the share of keys that each two sites select alike, all sites full."""
    matrix, layers = plan.search.overlap_matrix, plan.model.site_layers

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        cells = axes.pcolormesh(matrix, vmin=0.0, vmax=1.0, cmap="Blues", edgecolor="white", linewidth=0.3)
        every = max(1, len(layers) // 16)
        ticks = [site + 0.5 for site in range(0, len(layers), every)]
        axes.set_xticks(ticks, [str(layer) for layer in layers[::every]])
        axes.set_yticks(ticks, [str(layer) for layer in layers[::every]])
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xlabel("layer")
        axes.set_ylabel("layer")
        figure.colorbar(cells, ax=axes, label="share of keys selected alike")

    return _svg(draw, (5.6, 4.6))


def prefill_bars(record: PrefillRecord) -> str:
    """An SVG element: prefill seconds over the context, all full and the plan, indexers' part of each darker."""
    points = [point for point in record.points if point.all_full and point.plan]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for shift, role, colour in ((-0.2, "all full", UNIFORM), (0.2, "this plan", SEARCHED)):
            times = [point.all_full if role == "all full" else point.plan for point in points]
            places = [place + shift for place in range(len(points))]
            seconds = [time.seconds for time in times if time]
            indexers = [time.seconds * time.indexer_share for time in times if time]
            axes.bar(places, seconds, 0.36, color=colour, alpha=0.45, label=role)
            axes.bar(places, indexers, 0.36, color=colour, label=f"{role}: indexers")
        for place, point in enumerate(points):
            if point.all_full and point.speedup:
                axes.annotate(f"{point.speedup:.2f}x", (place, point.all_full.seconds), ha="center", va="bottom")
        axes.set_xticks(range(len(points)), [f"{point.context:,}" for point in points])
        axes.set_xlabel("context, tokens")
        axes.set_ylabel("prefill, seconds")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=4, columnspacing=1.2)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)

    return _svg(draw, (7.2, 3.9))


def _svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    # The object interface draws without pyplot's global state or a display.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt here, and no date below: the same plan is drawn in the same bytes.
    style = {"svg.hashsalt": "indexcache", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _dress(axes: Any, plan: Plan) -> None:
    """Marks the step that was picked and labels the axes."""
    sites, shared = plan.result.sites, plan.result.sites - plan.result.kept
    # The label goes to the side of the line that has more room.
    on_the_right = 2 * shared > max((sites - step.kept for step in plan.search.steps), default=0)
    axes.axvline(shared, color=_INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"this plan: {plan.result.kept} of {sites} kept",
        (shared, 1.02),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0) if on_the_right else (5, 0),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
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


def _line(axes: Any, points: Sequence[MeasuredPattern], sites: int, label: str, colour: str, marker: str) -> None:
    axes.errorbar(
        [sites - point.kept for point in points],
        [point.delta for point in points],
        yerr=[point.standard_error or 0.0 for point in points],
        label=label,
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        capsize=2.5,
        elinewidth=1,
    )
