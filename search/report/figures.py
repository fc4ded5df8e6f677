"""Draws a plan's loss-versus-sparsity curve and its overlap heatmap as SVG."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...pattern import Pattern
from ..plan.schema import HeldOutRecord, MeasuredPattern, Plan
from ..price.prefills import PrefillRecord

SEARCHED = "#0b6e99"
UNIFORM = "#c2571a"
OVERLAP = "#7a5ea8"
DP = "#4c7a34"
DISTILLED = "#b3261e"
_INK = "#3a3f45"
_ASIDE = 0.18  # of the distance between two budgets


@dataclass(frozen=True)
class _Series:
    """Patterns of one origin at several budgets: in sample, and the held-out one at the plan's budget."""

    label: str
    colour: str
    marker: str
    points: Sequence[MeasuredPattern]
    heldout: MeasuredPattern | None

    @property
    def is_curve(self) -> bool:
        """Whether there are points at several budgets."""
        return len(self.points) > 1


def loss_curve(plan: Plan, heldout: HeldOutRecord | None = None) -> str:
    """An SVG element: loss increase over the sites that share, searched and baselines, with their intervals.

    What was measured in sample is filled, what ``heldout`` says of the plan's budget is hollow. The KL divergence
    of the searched patterns is drawn beside their loss increase, which it is without the noise of labels.
    """
    sites, (searched, *baselines) = plan.result.sites, _series(plan, heldout)
    firm = [
        plan.all_full,
        *(point for series in _distilled(plan) for point in series.points),
        *searched.points,
        *([searched.heldout] if searched.heldout else []),
    ]
    curves = [point for series in baselines if series.is_curve for point in series.points]
    lowest, highest = _view(firm, curves)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_ylim(lowest, highest)
        above = []
        for series in baselines:
            measured = [*series.points, *([series.heldout] if series.heldout else [])]
            if all(point.delta <= highest for point in measured):
                _draw(axes, series, plan)
            else:
                above.append(series)
        _draw(axes, searched, plan)
        _divergence(axes, searched.points, sites)
        if searched.heldout:
            axes.plot([], [], "o", color=_INK, markerfacecolor="white", label="held out (hollow)")
        _above(axes, above, plan)
        _dress(axes, plan)

    return _svg(draw, (7.2, 3.9))


def _series(plan: Plan, heldout: HeldOutRecord | None) -> list[_Series]:
    """The searched patterns first, then each baseline of which anything was measured."""
    search, by_dp, distilled = plan.search, plan.search.strategy == "dp", plan.distilled
    picked = plan.result if distilled is None else distilled.calibration.before
    checked = heldout.plan if heldout else None
    # Without steps the patterns of dynamic programming are the search's.
    points = search.steps or (search.dp if by_dp else []) or [picked]
    if distilled is not None:  # with the indexers as they were, where the search had that pattern
        checked = distilled.heldout.before if picked.pattern in {point.pattern for point in points} else None
    searched = _Series("searched", SEARCHED, "o", points, checked)
    baselines = [
        *_distilled(plan),
        _Series("uniform interleaving", UNIFORM, "s", search.uniform, heldout.uniform if heldout else None),
        _Series("by overlap alone", OVERLAP, "^", search.overlap, None),
        _Series("dp over layer costs", DP, "D", [] if by_dp else search.dp, heldout.dp if heldout else None),
    ]
    return [searched, *(series for series in baselines if series.points)]


def _distilled(plan: Plan) -> list[_Series]:
    """The plan's pattern with distilled indexers; beside it stands what it was before."""
    if plan.distilled is None:
        return []
    sites, kept = plan.result.sites, plan.result.kept
    is_uniform = plan.result.pattern == str(Pattern.uniform(sites, kept, plan.pinned_sites))
    label = "uniform, distilled" if is_uniform else "distilled"
    return [_Series(label, DISTILLED, "*", [plan.result], plan.distilled.heldout.after)]


def _view(firm: Sequence[MeasuredPattern], curves: Sequence[MeasuredPattern]) -> tuple[float, float]:
    """From where to where loss increases are shown: ``firm`` points with their bars, and ``curves`` without.

    A baseline of a single point may be many times as high, and would flatten all others to a line.
    """
    below, above = _reach(firm)
    lows = [point.delta - reach for point, reach in zip(firm, below, strict=True)]
    highs = [point.delta + reach for point, reach in zip(firm, above, strict=True)]
    deltas = [point.delta for point in curves]
    lowest, highest = min(lows + deltas), max(highs + deltas)
    room = 0.08 * ((highest - lowest) or 1.0)
    return lowest - room, highest + 2 * room


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


def _on_the_right(plan: Plan) -> bool:
    """Whether the plan's budget is in the right half of the picture: its label has more room to the left then."""
    sites = plan.result.sites
    return 2 * (sites - plan.result.kept) > max((sites - step.kept for step in plan.search.steps), default=0)


def _dress(axes: Any, plan: Plan) -> None:
    """Marks the step that was picked and labels the axes."""
    sites, shared, on_the_right = plan.result.sites, plan.result.sites - plan.result.kept, _on_the_right(plan)
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


def _draw(axes: Any, series: _Series, plan: Plan) -> None:
    """A series with its bars, joined from all full on where its budgets are neighbours; held out hollow."""
    points = [plan.all_full, *series.points]
    joined = all(before.kept - after.kept == 1 for before, after in itertools.pairwise(points))
    _points(axes, points[0 if joined else 1 :], series, plan, label=series.label, linestyle="-" if joined else "")
    if series.heldout is not None:
        # A little aside, so that its bar stands beside the one in sample.
        _points(axes, [series.heldout], series, plan, _ASIDE, markersize=5.5, markerfacecolor="white")


def _points(
    axes: Any,
    points: Sequence[MeasuredPattern],
    series: _Series,
    plan: Plan,
    aside: float = 0.0,
    linestyle: str = "",
    markersize: float = 4,
    **style: str,
) -> None:
    """Points of a series with their bars; those of baselines stay in the background."""
    from matplotlib.colors import to_rgba

    axes.errorbar(
        [plan.result.sites - point.kept + aside for point in points],
        [point.delta for point in points],
        yerr=_reach(points),
        color=series.colour,
        ecolor=to_rgba(series.colour, 1.0 if series.colour == SEARCHED else 0.35),
        marker=series.marker,
        markersize=markersize,
        linestyle=linestyle or "none",
        linewidth=1.6,
        capsize=2.5,
        elinewidth=1,
        **style,
    )


def _divergence(axes: Any, points: Sequence[MeasuredPattern], sites: int) -> None:
    """The KL divergence of the searched patterns as a dashed line; nothing where it was not measured."""
    known = [(sites - point.kept, point.divergence) for point in points if point.divergence is not None]
    if len(known) > 1:
        shared, divergences = zip((0, 0.0), *known, strict=True)
        axes.plot(shared, divergences, label="searched: KL", color=SEARCHED, linewidth=1.2, linestyle="--")


def _above(axes: Any, series: Sequence[_Series], plan: Plan) -> None:
    """Says in words what lies above the picture."""
    lines = []
    for baseline in series:
        point = next((point for point in baseline.points if point.kept == plan.result.kept), baseline.points[-1])
        figures = [f"{point.delta:+.3f} in sample"]
        figures += [f"{baseline.heldout.delta:+.3f} held out"] if baseline.heldout else []
        lines.append((f"\u2191 {baseline.label} {', '.join(figures)}", baseline.colour))
    on_the_right = _on_the_right(plan)
    for number, (text, colour) in enumerate(lines):
        axes.annotate(
            text,
            (plan.result.sites - plan.result.kept, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if on_the_right else 5, -6 - 13 * number),
            textcoords="offset points",
            ha="right" if on_the_right else "left",
            va="top",
            color=colour,
        )


def _reach(points: Sequence[MeasuredPattern]) -> list[list[float]]:
    """How far bars go below and above: to the ends of the interval, or one standard error where there is none."""
    below, above = list[float](), list[float]()
    for point in points:
        error = point.standard_error or 0.0
        below.append(error if point.low is None else max(0.0, point.delta - point.low))
        above.append(error if point.high is None else max(0.0, point.high - point.delta))
    return [below, above]
