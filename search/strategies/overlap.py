"""The baseline that looks at overlap only: which sites would give the others the most similar selections."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...pattern import Pattern
from .dp import dp_patterns


def overlap_patterns(overlap: Sequence[Sequence[float]], pinned: Collection[int] = ()) -> dict[int, Pattern]:
    """The patterns whose shared sites' selections overlap most with their sources', by their number of full sites.

    A shared site loses what its selection overlaps with itself more than with its source's. Such losses add up, so
    that dynamic programming over them is exact. The paper's Appendix C finds that such local similarity misleads;
    this is a baseline to compare with.

    Args:
        overlap: ``[sites][sites]``, the share of keys that two sites select alike, all sites full.
        pinned: sites that have to be full.
    """
    losses = [[overlap[site][site] - share for site, share in enumerate(row)] for row in overlap]
    return dp_patterns(losses, pinned)
