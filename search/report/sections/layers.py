"""The pattern over all decoder layers: whom each full layer serves, how sure it is, and where stages may begin."""

from __future__ import annotations

from dataclasses import dataclass

from ....pattern import Pattern, layer_ranges
from ...plan.schema import Plan
from ...stages import split_before_last, stage_starts
from ..certainty import Site, interchanges, strip
from ..tables import Column, Row, Table
from ..words import percent

_STAGES = (2, 4, 8, 16)


@dataclass(frozen=True)
class Cell:
    """A decoder layer of the strip.

    Args:
        layer: its number.
        role: F or S; N where it shares in the checkpoint itself, "" where it has no indexer at all.
        words: the layer in a sentence.
        pinned: whether it had to stay full.
        chance: per cent of draws in which it stays full; None where that is not known.
        site: its number among the sites; None where it is none.
    """

    layer: int
    role: str
    words: str
    pinned: bool = False
    chance: int | None = None
    site: int | None = None


def cells(plan: Plan) -> list[Cell]:
    """All decoder layers in order."""
    sites = {site.layer: (number, site) for number, site in enumerate(strip(plan))}
    shared = set(plan.model.shared_layers)
    row = []
    for layer in range(plan.model.layers):
        if layer in sites:
            row.append(_site_cell(*sites[layer]))
        elif layer in shared:
            row.append(Cell(layer, "N", f"layer {layer} shares in the checkpoint itself"))
        else:
            row.append(Cell(layer, "", f"layer {layer} has no indexer"))
    return row


def _site_cell(number: int, site: Site) -> Cell:
    chance = None if site.chance is None else round(100 * site.chance)
    return Cell(site.layer, site.role, site.explanation, site.pinned, chance, number)


def full_layers(plan: Plan) -> Table:
    """Each full layer: whom it serves, how often it stays full, and which dropped layers are not told from it."""
    layers, sources = plan.model.site_layers, Pattern(plan.result.pattern).sources()
    rivals: dict[int, list[int]] = {}
    for choice in interchanges(plan):
        for kept in choice.kept:
            rivals.setdefault(kept, []).append(choice.dropped)
    columns = [
        Column("full layer"),
        Column("serves", names=True),
        Column("stays full"),
        Column("not told from, dropped", names=True),
        Column("pinned", names=True),
    ]
    rows = []
    for site, chance in enumerate(strip(plan)):
        if chance.role != "F":
            continue
        served = [layers[other] for other, source in enumerate(sources) if source == site and other != site]
        rows.append(
            Row(
                (
                    str(chance.layer),
                    layer_ranges(served) if served else "itself only",
                    "" if chance.chance is None else percent(round(chance.chance, 3)),
                    layer_ranges(sorted(rivals.get(chance.layer, []))),
                    "yes" if chance.pinned else "",
                )
            )
        )
    return Table.of(columns, rows)


def stages_sentence(plan: Plan) -> str:
    """Where a pipeline stage may begin in an engine that hands no selection from stage to stage."""
    letters, indexed = plan.result.layer_pattern, [*plan.model.site_layers, *plan.model.shared_layers]
    full = [layer for layer in sorted(indexed) if letters[layer] == "F"]
    fitting = [
        size
        for size in _STAGES
        if size <= plan.model.layers
        and all(
            letters[layer] == "F" for layer in stage_starts(split_before_last(plan.model.layers, size), indexed)
        )
    ]
    tried = [size for size in _STAGES if size <= plan.model.layers]
    even = (
        f"even splits into {' or '.join(map(str, fitting))} stages fit this pattern"
        if fitting
        else f"this pattern fits no even split into {' or '.join(map(str, tried))} stages"
    )
    return (
        "Pipeline stages: where an engine hands no selection to the next stage, the first layer with an indexer "
        f"of each stage must be full, here one of {layer_ranges(full)}; {even}. "
        "`search --pp-size` plans for stages."
    )
