"""Bars of seconds over the context, all full beside the plan, the indexers' part of each darker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import NARROW, WIDE, Scale, Size, legend_rows, ticks
from .template import picture

_LABELS = ("all full", "of it indexers", "this plan", "of it indexers")


@dataclass(frozen=True)
class Pair:
    """The seconds that one context takes all full and under the plan, and the indexers' part of both.

    Args:
        context: in words.
        all_full: seconds, and those of indexers, 0 where they were not told apart.
        plan: likewise.
        speedup: in words; "" where there is none.
    """

    context: str
    all_full: tuple[float, float]
    plan: tuple[float, float]
    speedup: str


def bar_pictures(pairs: Sequence[Pair], name: str, title: str) -> list[str]:
    """The bars for wide screens and for phones, as SVG elements of a page; ``name`` tells them from others."""
    return [_drawn(pairs, name, title, size, alone=False) for size in (WIDE, NARROW)]


def bar_file(pairs: Sequence[Pair], name: str, title: str) -> str:
    """The bars as the text of an SVG file."""
    return _drawn(pairs, name, title, WIDE, alone=True)


def _drawn(pairs: Sequence[Pair], name: str, title: str, size: Size, alone: bool) -> str:
    legend = legend_rows(_LABELS, size)
    highest = max(seconds for pair in pairs for seconds, _ in (pair.all_full, pair.plan))
    down = Scale(0.0, highest * 1.02, size.height - 46, 20 * len(legend) + 30)
    start, end = 62 if size.is_wide else 56, size.width - 12
    room = (end - start) / len(pairs)
    groups = [_group(pair, start + number * room, room, down) for number, pair in enumerate(pairs)]
    words = "; ".join(
        f"{pair.context} tokens: {pair.all_full[0]:.3g} s all full, {pair.plan[0]:.3g} s under this plan"
        for pair in pairs
    )
    return picture(
        "bars.svg.j2",
        alone,
        size=size,
        name=name,
        title=title,
        summary=words,
        legend=[[(_LABELS[number], _looks(number), place) for number, place in row] for row in legend],
        rows=ticks(down, 5),
        start=start,
        end=end,
        down=down,
        groups=groups,
    )


def _looks(number: int) -> str:
    return f"{'uniform' if number < 2 else 'searched'}{' pale' if number % 2 == 0 else ''}"


@dataclass(frozen=True)
class _Group:
    """A context's bars: class, left edge, width, top and what each says."""

    middle: float
    top: float
    label: str
    speedup: str
    bars: tuple[tuple[str, float, float, float, str], ...]


def _group(pair: Pair, start: float, room: float, down: Scale) -> _Group:
    width = round(room * 0.34, 1)
    bars = []
    for look, (seconds, indexers), left, role in (
        ("uniform", pair.all_full, start + room * 0.14, "all full"),
        ("searched", pair.plan, start + room * 0.52, "this plan"),
    ):
        words = f"{role}, {pair.context} tokens: {seconds:.3g} s"
        bars.append((f"{look} pale", round(left, 1), width, down(seconds), words))
        if indexers:
            bars.append((look, round(left, 1), width, down(indexers), f"{words}, {indexers:.3g} s in indexers"))
    return _Group(round(start + room / 2, 1), down(pair.all_full[0]), pair.context, pair.speedup, tuple(bars))
