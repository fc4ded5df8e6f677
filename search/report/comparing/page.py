"""The comparison of several plans as one self-contained page, or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..certainty import decided_steps
from ..drawing.curve import Curve, curve_pictures
from ..drawing.template import template
from ..pages import scripted
from ..sections.layers import Cell, cells
from ..sections.speed import speeds
from ..series import ON_HELD_OUT, Series, point, series
from ..tables import Column, Row, Table
from ..words import increase, percent
from .plans import Compared, differing_text

# As many plans as this have a colour and a shape of their own; more would not be told apart.
_LOOKS = (
    ("searched", "circle"),
    ("uniform", "square"),
    ("dp", "diamond"),
    ("overlap", "triangle"),
    ("distilled", "star"),
)


def comparison(plans: Sequence[Compared], markdown: bool = False) -> str:
    """``plans`` side by side: figures, curves in one picture, and patterns one below the other.

    Args:
        plans: two or more.
        markdown: plain text instead of a page, without the picture.
    """
    alike = len({plan.plan.model.layers for plan in plans}) == 1
    context = {
        "title": f"{len(plans)} indexcache plans compared",
        "table": side_by_side(plans),
        "differing": differing_text(plans),
        "curves": [picture for curve in _curves(plans) for picture in curve_pictures(curve)],
        "strips": [(plan.name, cells(plan.plan)) for plan in plans],
        "letters": [(plan.name, plan.plan.result.layer_pattern) for plan in plans],
        "alike": alike,
        "differing_layers": _differing_layers([cells(plan.plan) for plan in plans]) if alike else None,
        "left_out": max(0, len(plans) - len(_LOOKS)),
    }
    if markdown:
        text: str = template("comparison.md.j2", escape=False).render(context)
        return re.sub(r"\n{3,}", "\n\n", text)
    page: str = template("comparison.html.j2").render(context | scripted())
    return page


def side_by_side(plans: Sequence[Compared]) -> Table:
    """A row for each figure and a column for each plan."""
    rows = {
        "model": [plan.plan.model.id for plan in plans],
        "checkpoint": [plan.plan.model.weights_sha256[:12] for plan in plans],
        "strategy": [plan.plan.search.strategy for plan in plans],
        "indexers kept": [f"{plan.plan.result.kept} of {plan.plan.result.sites}" for plan in plans],
        "kept, share": [percent(round(plan.plan.result.kept / plan.plan.result.sites, 3)) for plan in plans],
        "loss increase, held out": [_increase(plan) for plan in plans],
        "loss increase, in sample": [increase(plan.plan.result, plan.plan.search.confidence) for plan in plans],
        "uniform, held out": [
            increase(plan.heldout.uniform, plan.plan.search.confidence) if plan.heldout else "not measured"
            for plan in plans
        ],
        "probes right": [_probes(plan) for plan in plans],
        "steps decided": [_decided(plan) for plan in plans],
        "speed": [_speed(plan) for plan in plans],
        "windows": [f"{plan.plan.tokens.windows} of {plan.plan.tokens.window:,} tokens" for plan in plans],
        "text": [plan.plan.tokens.dataset for plan in plans],
        "dtype": [plan.plan.run.dtype for plan in plans],
    }
    columns = [Column("", names=True), *(Column(plan.name, names=True) for plan in plans)]
    return Table(tuple(columns), tuple(Row((name, *figures)) for name, figures in rows.items()))


def _increase(plan: Compared) -> str:
    return increase(plan.heldout.plan if plan.heldout else None, plan.plan.search.confidence)


def _probes(plan: Compared) -> str:
    if plan.probes is None:
        return "not measured"
    return f"{100 * plan.probes.all.plan.accuracy:.0f} % (all full {100 * plan.probes.all.full.accuracy:.0f} %)"


def _decided(plan: Compared) -> str:
    decided = decided_steps(plan.plan)
    return "not known" if decided is None else f"{decided.count} of {decided.steps}"


def _speed(plan: Compared) -> str:
    measured = speeds(plan.prefills, plan.decodes, plan.plan, plan.plan)
    return "; ".join(speed.words for speed in measured) or "not measured"


def _curves(plans: Sequence[Compared]) -> list[Curve]:
    """One picture for all plans of as many sites; budgets are counted from all full."""
    by_sites: dict[int, list[tuple[Series, str, str]]] = {}
    for plan, (look, shape) in zip(plans, _LOOKS, strict=False):
        by_sites.setdefault(plan.plan.result.sites, []).append((_line(plan), look, shape))
    return [Curve(tuple(lines), sites, None, name=f"curve-{sites}") for sites, lines in by_sites.items()]


def _line(plan: Compared) -> Series:
    """The plan's curve: held out where eval measured all of it, in sample elsewhere."""
    whole = plan.checks.curve if plan.checks else None
    if whole is not None:
        return Series(plan.name + ON_HELD_OUT, tuple(map(point, whole.losses.searched)))
    return Series(plan.name, series(plan.plan)[0].points)


def _differing_layers(strips: Sequence[Sequence[Cell]]) -> list[int]:
    """Layers that not all plans treat alike."""
    return [
        together[0].layer for together in zip(*strips, strict=True) if len({cell.role for cell in together}) > 1
    ]
