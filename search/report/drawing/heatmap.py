"""The heatmap: which share of keys each two layers select alike."""

from __future__ import annotations

import itertools

from ...plan.schema import Plan
from .axes import NARROW, WIDE, Size, Tick
from .template import picture

_LEVELS = 10


def heatmap_pictures(plan: Plan) -> list[str]:
    """The heatmap for wide screens and for phones, as SVG elements of a page."""
    return [_drawn(plan, Size(size.name, size.width, size.width), alone=False) for size in (WIDE, NARROW)]


def heatmap_file(plan: Plan) -> str:
    """The heatmap as the text of an SVG file."""
    return _drawn(plan, Size(WIDE.name, WIDE.width, WIDE.width), alone=True)


def _drawn(plan: Plan, size: Size, alone: bool) -> str:
    matrix, layers = plan.search.overlap_matrix, plan.model.site_layers
    first = 48.0
    cell = (size.width - first - 8) / len(layers)
    every = max(1, len(layers) // (16 if size.is_wide else 8))
    labels = [
        Tick(round(first + (site + 0.5) * cell, 1), str(layers[site])) for site in range(0, len(layers), every)
    ]
    return picture(
        "heatmap.svg.j2",
        alone,
        size=Size(size.name, size.width, size.height + 40),
        name="overlap",
        first=first,
        cell=round(cell, 3),
        ticks=labels,
        levels=[(level / _LEVELS, _path(matrix, level)) for level in range(_LEVELS + 1)],
        shades=[level / _LEVELS for level in range(_LEVELS + 1)],
    )


def _path(matrix: list[list[float]], level: int) -> str:
    """The cells at ``level`` tenths, in units of a cell: runs of neighbours in a row are one rectangle."""
    rectangles = []
    for row, shares in enumerate(matrix):
        levels = enumerate(min(_LEVELS, max(0, round(share * _LEVELS))) for share in shares)
        for of_level, run in itertools.groupby(levels, key=lambda numbered: numbered[1] == level):
            cells = [column for column, _ in run]
            if of_level:
                rectangles.append(f"M{cells[0]} {row}h{len(cells)}v1h-{len(cells)}z")
    return "".join(rectangles)
