"""Placeholder until merged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...pattern import Pattern


def mean_costs(costs: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    return []


def dp_patterns(costs: Sequence[Sequence[float]], pinned: Collection[int] = ()) -> dict[int, Pattern]:
    return {}


def removal_order(patterns: Mapping[int, Pattern]) -> tuple[int, ...]:
    return ()
