"""The curve: loss increase over the sites without an indexer, each origin a line, held-out measurements hollow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ...plan.schema import HeldOutRecord, Plan
from ..checks import CurveLosses
from ..series import (
    DP,
    JOINT,
    ON_HELD_OUT,
    OVERLAP,
    SEARCHED,
    UNIFORM,
    UNIFORM_DISTILLED,
    Point,
    Series,
    point,
    series,
)
from ..words import signed
from .axes import NARROW, WIDE, Scale, Size, legend_rows, ticks
from .template import picture

# By origin: a class of the style sheet and a shape.
_LOOKS = {
    SEARCHED: ("searched", "circle"),
    JOINT: ("searched", "circle"),
    UNIFORM: ("uniform", "square"),
    UNIFORM_DISTILLED: ("uniform", "star"),
    DP: ("dp", "diamond"),
    OVERLAP: ("overlap", "triangle"),
}
_OTHER = ("distilled", "star")
_ASIDE = 0.18  # of the distance between two budgets
_KL = "searched: KL"


@dataclass(frozen=True)
class Curve:
    """Series of one plan, or of several that are compared, and the budget that was picked.

    Args:
        series: each with the class of its colour and its shape.
        sites: of the model; budgets are counted from there.
        kept: full sites of the budget that is marked; None where none is.
        divergence: the KL divergence of the searched patterns by full sites; none where it was not measured.
        lead: series that have to be seen whole.
        name: that tells the picture from others on the page.
    """

    series: tuple[tuple[Series, str, str], ...]
    sites: int
    kept: int | None
    divergence: tuple[tuple[int, float], ...] = ()
    name: str = "curve"


@dataclass(frozen=True)
class Mark:
    """A measurement as it is drawn: where, how far its bar reaches, and what it says on being pointed at."""

    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Line:
    """A series as it is drawn: ``path`` joins its marks where its budgets are neighbours, and is "" elsewhere."""

    look: str
    shape: str
    hollow: bool
    path: str
    marks: tuple[Mark, ...]


def curve_of(plan: Plan, heldout: HeldOutRecord | None = None, whole: CurveLosses | None = None) -> Curve:
    """The curve of ``plan``, with the check in ``heldout``, and every budget held out where ``whole`` has them.

    Then what was measured in sample is left out where the same was held out.
    """
    measured = series(plan, heldout)
    if whole is not None:
        lines = ((SEARCHED, whole.searched), (DP, whole.dp), (UNIFORM, whole.uniform))
        checked = [
            Series(origin + ON_HELD_OUT, tuple(map(point, patterns))) for origin, patterns in lines if patterns
        ]
        instead = {line.origin for line in checked}
        measured = (*checked, *(line for line in measured if line.origin not in instead))
    source = plan.search.steps if whole is None else whole.searched
    known = [(step.kept, step.divergence) for step in source if step.divergence is not None]
    return Curve(
        tuple((line, *_LOOKS.get(line.origin, _OTHER)) for line in measured),
        plan.result.sites,
        plan.result.kept,
        tuple(known) if len(known) > 1 else (),
    )


def curve_pictures(curve: Curve) -> list[str]:
    """The curve for wide screens and for phones, as SVG elements of a page."""
    return [_drawn(curve, size, alone=False) for size in (WIDE, NARROW)]


def curve_file(curve: Curve) -> str:
    """The curve as the text of an SVG file."""
    return _drawn(curve, WIDE, alone=True)


def _drawn(curve: Curve, size: Size, alone: bool) -> str:
    labels = _legend(curve)
    legend = legend_rows([label for label, *_ in labels], size)
    across = Scale(0, max(1, _most_shared(curve)), 62 if size.is_wide else 56, size.width - 18)
    highest, lowest = _view(curve)
    down = Scale(lowest, highest, size.height - 46, 20 * len(legend) + 34)
    shown, above = _within(curve, highest)
    return picture(
        "curve.svg.j2",
        alone,
        size=size,
        name=curve.name,
        legend=[[(*labels[number], place) for number, place in row] for row in legend],
        columns=ticks(across, 8 if size.is_wide else 5, whole=True),
        rows=ticks(down, 5),
        across=across,
        down=down,
        step=round(across(1) - across(0), 3),
        lines=[_line(series, look, shape, curve, across, down) for series, look, shape in shown],
        divergence=_divergence(curve, across, down),
        above=[(_above(line, curve.kept), look) for line, look in above],
        sites=curve.sites,
        kept=curve.kept,
        summary=_summary(curve),
    )


def _legend(curve: Curve) -> list[tuple[str, str, str, bool]]:
    """Entries: text, class, shape, and whether it is hollow; an origin once, and hollow ones together."""
    entries = {line.origin: (line.origin, look, shape, False) for line, look, shape in curve.series}
    labels = list(entries.values())
    if curve.divergence:
        labels.insert(1, (_KL, "searched", "dash", False))
    if any(line.is_held_out for line, _, _ in curve.series):
        labels.append(("held out (hollow)", "ink", "circle", True))
    return labels


def _most_shared(curve: Curve) -> int:
    return curve.sites - min(point.kept for line, _, _ in curve.series for point in line.points)


def _view(curve: Curve) -> tuple[float, float]:
    """The highest and the lowest increase that are shown.

    What has several budgets is a curve and is shown whole. A baseline of a single point may be many times as high,
    and would flatten all others to a line.
    """
    values = [0.0]
    for line, look, _ in curve.series:
        firm = look in ("searched", "distilled") or curve.kept is None
        if firm:
            values += [end for point in line.points for end in (point.low, point.high) if end is not None]
        if firm or len(line.points) > 1:
            values += [point.increase for point in line.points]
    values += [divergence for _, divergence in curve.divergence]
    room = 0.06 * ((max(values) - min(values)) or 1.0)
    return max(values) + room, min(values) - room


def _within(curve: Curve, highest: float) -> tuple[list[tuple[Series, str, str]], list[tuple[Series, str]]]:
    """The series that are drawn, those of the search last and so on top, and those that lie above the picture."""
    shown, above = [], []
    for line, look, shape in curve.series:
        if all(point.increase <= highest for point in line.points):
            shown.append((line, look, shape))
        else:
            above.append((line, look))
    return shown[::-1], above


def _line(line: Series, look: str, shape: str, curve: Curve, across: Scale, down: Scale) -> Line:
    hollow = line.is_held_out
    # A single held-out measurement stands a little aside, so that its bar does not hide the one in sample.
    alone = hollow and len(line.points) == 1
    marks = tuple(
        _mark(point, line.name, curve.sites, across, down, _ASIDE if alone else 0.0) for point in line.points
    )
    kept = [curve.sites, *(point.kept for point in line.points)]
    neighbours = all(before - after == 1 for before, after in itertools.pairwise(kept))
    places = [(across(0), down(0.0)), *((mark.x, mark.y) for mark in marks)]
    return Line(look, shape, hollow, _path(places) if neighbours and not alone else "", marks)


def _mark(point: Point, name: str, sites: int, across: Scale, down: Scale, aside: float) -> Mark:
    low = point.increase if point.low is None else min(point.low, point.increase)
    high = point.increase if point.high is None else max(point.high, point.increase)
    interval = "" if point.low is None or point.high is None else f" ({point.low:.4f} to {point.high:.4f})"
    top, bottom = min(down.start, down.end), max(down.start, down.end)
    return Mark(
        across(min(sites - point.kept + aside, across.high)),
        down(point.increase),
        min(bottom, down(low)),
        max(top, down(high)),
        f"{name}, {point.kept} of {sites} kept: {signed(point.increase)}{interval}",
    )


def _divergence(curve: Curve, across: Scale, down: Scale) -> str:
    """The path of the KL divergence; "" where it was not measured."""
    if not curve.divergence:
        return ""
    return _path(
        [(across(0), down(0.0)), *((across(curve.sites - kept), down(kl)) for kept, kl in curve.divergence)]
    )


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _above(line: Series, kept: int | None) -> str:
    """A series that lies above the picture, in words."""
    point = next((point for point in line.points if point.kept == kept), line.points[-1])
    return f"\u2191 {line.origin} {point.increase:+.3f} {'held out' if line.is_held_out else 'in sample'}"


def _summary(curve: Curve) -> str:
    """What the picture shows, for those who do not see it."""
    words = []
    for line, _, _ in curve.series:
        point = next((point for point in line.points if point.kept == curve.kept), line.points[-1])
        words.append(f"{line.name} {signed(point.increase)} at {point.kept} of {curve.sites} kept")
    return f"Loss increase in nats per token over the sites without an indexer: {'; '.join(words)}."
