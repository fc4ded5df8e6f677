"""Times of decode steps under a plan, as bench --decode writes them beside the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..plan.beside import Section, file_beside, read_record
from .prefills import Count, Seconds, Share, TimesRecord

DECODE_NAME = "bench-decode.json"
Bytes = Annotated[int, Field(ge=1)]


class DecodeTime(Section):
    """Seconds of one step, an output token for each sequence: the median run, the fastest and the slowest one.

    ``indexer_share`` is None where steps were replayed as a CUDA graph. ``read_bytes`` is what the step has to
    read by the config, each byte once; None where that is not known.
    """

    seconds: Seconds
    least: Seconds
    most: Seconds
    indexer_share: Share | None
    read_bytes: Bytes | None


class DecodePoint(Section):
    """Steps of ``batch`` sequences that end at ``context`` tokens each; None where they did not fit.

    ``uniform`` is None where it was not asked for, too.
    """

    context: Count
    batch: Count
    all_full: DecodeTime | None
    plan: DecodeTime | None
    uniform: DecodeTime | None = None

    @property
    def speedup(self) -> float | None:
        """How many times faster the plan is."""
        return self.all_full.seconds / self.plan.seconds if self.all_full and self.plan else None

    @property
    def speedup_by_bytes(self) -> float | None:
        """How many times fewer bytes it reads."""
        full, plan = self.all_full, self.plan
        if full is None or plan is None or full.read_bytes is None or plan.read_bytes is None:
            return None
        return full.read_bytes / plan.read_bytes


class DecodeRecord(TimesRecord):
    """What bench --decode measured of one pattern on one device.

    ``filled`` says what the cache held: "random" keys, or those of a "prefill". ``launched`` is "graph" where
    steps were replayed as CUDA graphs, else "eager". ``busy`` says in words who else used the machine, if anybody.
    """

    steps: Count
    filled: str
    launched: str
    busy: str
    versions: dict[str, str]
    points: list[DecodePoint]


def decode_file(plan: Path) -> Path:
    """Where the decode times of the plan in the file ``plan`` are: bench-decode.json for plan.json."""
    return file_beside(plan, DECODE_NAME)


def read_decodes(path: Path, pattern: str) -> DecodeRecord | None:
    """The times in ``path``; None if there is no such file or it is about another pattern.

    Raises:
        PlanError: it cannot be read, or is not what bench --decode writes.
    """
    record = read_record(path, DecodeRecord, "bench --decode", "run bench --decode again, or remove it")
    return record if record is not None and record.pattern == pattern else None
