"""The paper's pipeline variant: blocks of layers, one removal a block before the next is searched."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...errors import SettingError
from ...pattern import Pattern
from ..intervals import CONFIDENCE
from ..losses import Measurements
from .greedy import Step, best_step, candidates


def blocks_greedy(
    measurements: Measurements,
    sites: int,
    kept: int,
    blocks: int,
    noise_floor: float = 0.0,
    pinned: Collection[int] = (),
    confidence: float = CONFIDENCE,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Searches block after block and commits the best removal of each before the next (2603.12201).

    The first site of every block stays full. About ``blocks`` times fewer evaluations than Algorithm 1.

    Args:
        measurements: of the calibration windows.
        sites: how many sites the model has.
        kept: full sites at the end.
        blocks: how many blocks of about equal size, in layer order.
        noise_floor: costs that differ by no more than this count as tied.
        pinned: further sites that stay full.
        confidence: with which a step has to be told from its rivals to count as decided.
        on_step: told of each committed step.

    Raises:
        SettingError: more blocks than sites, or than sites to be kept.
        MeasurementError: no candidate of a block has a finite loss.
    """
    check_blocks(blocks, sites, kept)
    starts = Pattern.uniform(sites, blocks).full
    fixed = {*pinned, *starts}
    pattern, steps = Pattern.all_full(sites), list[Step]()
    while pattern.kept > kept and candidates(pattern, fixed):
        for first, end in zip(starts, (*starts[1:], sites), strict=True):
            field = [site for site in candidates(pattern, fixed) if first <= site < end]
            if not field or pattern.kept == kept:
                continue
            step = best_step(field, measurements([pattern.share(site) for site in field]), noise_floor, confidence)
            on_step(step)
            steps.append(step)
            pattern = step.pattern
    return steps


def check_blocks(blocks: int, sites: int, kept: int) -> None:
    """Refuses more blocks than sites to be kept, since each block keeps its first.

    Raises:
        SettingError: says how many of how many.
    """
    if not 1 <= blocks <= kept:
        raise SettingError(
            f"{blocks} blocks keep at least {blocks} of {sites} sites full, but {kept} are to be kept",
            hint="give fewer blocks, or keep more",
        )
