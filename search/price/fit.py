"""Seconds over a length, from measured points: a polynomial without negative terms, fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

MEASURED, FITTED, EXTRAPOLATED = "measured", "fitted", "extrapolated"
Basis = Literal["measured", "fitted", "extrapolated"]


@dataclass(frozen=True)
class Estimate:
    """Seconds at a length, and whether they were measured there, fitted between points, or lie beyond them."""

    seconds: float
    basis: Basis


@dataclass(frozen=True)
class Fit:
    """``seconds(L) = sum of c_i L^i``.

    Args:
        coefficients: ``c_0, c_1, ...``, none of them negative: no part of the work gets cheaper with length.
        points: the seconds measured, by length in tokens.
        error: the largest relative distance of a point from the curve.
    """

    coefficients: tuple[float, ...]
    points: Mapping[int, float]
    error: float

    @property
    def range(self) -> tuple[int, int]:
        """The shortest and the longest length measured."""
        return min(self.points), max(self.points)

    def curve(self, length: float) -> float:
        """Seconds by the formula alone."""
        return float(sum(value * length**power for power, value in enumerate(self.coefficients)))

    def at(self, length: float) -> Estimate:
        """Seconds at ``length`` tokens: as measured where they were."""
        least, most = self.range
        if length in self.points:
            return Estimate(self.points[int(length)], "measured")
        return Estimate(self.curve(length), "fitted" if least <= length <= most else "extrapolated")


def fit(points: Mapping[int, float], powers: Sequence[int]) -> Fit:
    """The polynomial of ``powers`` nearest to ``points`` in relative terms, without negative coefficients.

    Minimises ``sum over points of ((curve(L) - t) / t)^2``. Of the sets of powers whose own least squares have no
    negative coefficient the best is taken, which is the minimum under that condition. With fewer points than
    powers, sets of as many powers as points are tried.

    Args:
        points: seconds by length in tokens, both positive.
        powers: of the length, e.g. ``(1, 2)``.
    """
    lengths = np.array(sorted(points), dtype=float)
    times = np.array([points[int(length)] for length in lengths])
    # Lengths from 0 to 1, so that their powers are of one size.
    longest = float(lengths[-1])
    best: tuple[float, dict[int, float]] | None = None
    most = min(len(powers), len(points))
    for chosen in (chosen for count in range(most, 0, -1) for chosen in combinations(powers, count)):
        terms = np.stack([(lengths / longest) ** power for power in chosen], axis=1) / times[:, None]
        solution = np.linalg.lstsq(terms, np.ones(len(times)), rcond=None)[0]
        # What is below rounding counts as nothing.
        if (solution < -1e-12 * np.abs(solution).max()).any():
            continue
        residual = float(((terms @ solution - 1) ** 2).sum())
        if best is None or residual < best[0] * (1 - 1e-9) - 1e-24:
            values = zip(chosen, solution, strict=True)
            best = residual, {power: max(0.0, float(value)) / longest**power for power, value in values}
    assert best is not None, "a single power of positive times has a positive coefficient"
    coefficients = tuple(best[1].get(power, 0.0) for power in range(max(powers) + 1))
    fitted = Fit(coefficients, dict(points), 0.0)
    error = max(abs(fitted.curve(length) - seconds) / seconds for length, seconds in points.items())
    return Fit(coefficients, dict(points), error)


def pays_from(full: Fit, shared: Fit) -> float | None:
    """The length from which on ``shared`` is faster than ``full`` by their curves; 0 at all, None at none."""
    gains = np.array(full.coefficients) - np.array(shared.coefficients)
    # A gain within rounding of what it is the difference of is none.
    gains[np.abs(gains) <= 1e-9 * np.array(full.coefficients)] = 0.0
    powers = np.flatnonzero(gains)
    if not len(powers) or gains[powers[-1]] < 0:
        return None
    roots = np.roots(gains[::-1])
    crossings = [
        float(root.real) for root in roots if abs(root.imag) < 1e-9 * max(1.0, abs(root)) and root.real > 0
    ]
    return max(crossings, default=0.0)
