"""What sharing is worth, as the report shows it: memory by the config, and output tokens as bench timed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..plan.schema import Plan
from ..price.decodes import DecodePoint, DecodeRecord, DecodeTime
from ..price.memory import IndexerSizes, spared_line
from .tables import Column, Row, Table


@dataclass(frozen=True)
class Worth:
    """What lies beside a plan of its use: sizes of its checkpoint's indexers, and times of output tokens."""

    sizes: IndexerSizes | None = None
    decodes: DecodeRecord | None = None


class DecodeSection(NamedTuple):
    """How output tokens were timed, and the times."""

    sentence: str
    table: Table


def memory_sentence(plan: Plan, sizes: IndexerSizes | None) -> str:
    """What shared layers spare, by the config; "" where it is not known."""
    if sizes is None:
        return ""
    line = spared_line(sizes, plan)
    return f"By the config, {line}. Engines spare it where their shared layers write no index keys."


def decode_section(plan: Plan, decodes: DecodeRecord | None) -> DecodeSection | None:
    """Output tokens as they were timed; None where they were not."""
    if decodes is None:
        return None
    other = "" if decodes.config_sha256 == plan.model.config_sha256 else ", whose config is not the one searched"
    weights = ", random weights" if decodes.random_weights else ""
    how = "replayed as CUDA graphs" if decodes.launched == "graph" else "kernels launched one by one"
    filled = (
        "keys drawn at random, which take as long as any" if decodes.filled == "random" else "a prefill's keys"
    )
    busy = f" Meanwhile {decodes.busy}." if decodes.busy else ""
    sentence = (
        f"Medians of {decodes.repeats} runs of {decodes.steps} steps of {decodes.model}{other}, on "
        f"{decodes.device}, {decodes.dtype}, {decodes.attention} attention{weights}, {how}; in brackets the "
        f"fastest and the slowest run. The cache holds {filled}. By bytes: what a step has to read by the config, "
        f"all full over this plan.{busy}"
    )
    columns = ("context", "batch", "all full, ms", "this plan, ms", "uniform, ms", "speedup", "by bytes")
    return DecodeSection(
        sentence, Table.of([Column(name) for name in columns], [_row(point) for point in decodes.points])
    )


def _row(point: DecodePoint) -> Row:
    place = (f"{point.context:,}", str(point.batch))
    if point.speedup is None:
        return Row((*place, "does not fit", "", "", "", ""))
    by_bytes = point.speedup_by_bytes
    times = (spread(point.all_full), spread(point.plan), spread(point.uniform))
    return Row((*place, *times, f"{point.speedup:.2f}x", "" if by_bytes is None else f"{by_bytes:.2f}x"))


def spread(time: DecodeTime | None) -> str:
    """``12.3 (12.1-13.0)`` in milliseconds: the median run, the fastest and the slowest."""
    if time is None:
        return ""
    middle, least, most = (f"{1000 * seconds:.3g}" for seconds in (time.seconds, time.least, time.most))
    return f"{middle} ({least}-{most})"
