"""The baseline that looks at overlap only: which sites would give the others the most similar selections."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...pattern import Pattern


def overlap_pattern(overlap: Sequence[Sequence[float]], kept: int, pinned: Collection[int] = ()) -> Pattern:
    """The pattern with ``kept`` full sites whose selections the shared ones overlap most with.

    Solved exactly by dynamic programming over where each run of shared sites ends. The paper's
    Appendix C finds that such local similarity misleads; this is a baseline to compare with.

    Args:
        overlap: ``[sites][sites]``, the share of keys that two sites select alike, all sites full.
        kept: full sites.
        pinned: sites that have to be full.
    """
    sites = len(overlap)
    # served[i][j]: what sites i to j - 1 gain together when i is full and serves the rest.
    served = [[0.0] * (sites + 1) for _ in range(sites)]
    for first in range(sites):
        for site in range(first, sites):
            served[first][site + 1] = served[first][site] + overlap[first][site]
    worst: tuple[float, tuple[int, ...]] = (float("-inf"), ())
    # best[end]: the highest gain of the sites before ``end``, and the full sites that reach it.
    best = [(0.0, ()), *[worst] * sites]
    for _ in range(kept):
        reached = [worst] * (sites + 1)
        for first in range(sites):
            gained, full = best[first]
            # A run of sites that ``first`` serves ends before the next pinned site, which is full.
            next_pinned = min((site for site in pinned if site > first), default=sites)
            for end in range(first + 1, next_pinned + 1):
                total = gained + served[first][end]
                if total > reached[end][0]:
                    reached[end] = (total, (*full, first))
        best = reached
    return Pattern.from_full(sites, best[sites][1])
