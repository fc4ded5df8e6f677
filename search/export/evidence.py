"""How it is known that an engine runs what is exported for it: run, only parsed, or only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .support import Engine

# Made from the results in tests/conformance by evidence_table.py there.
FILE = Path(__file__).with_name("evidence.json")
# The embedded model's.
_FAMILY = "glm_moe_dsa"


@dataclass(frozen=True)
class Evidence:
    """What was done with an engine.

    Args:
        kind: "ran", where its logits under the embedded model's exported plan were compared with those of
            transformers; "parsed", where the code of its release that reads the settings was run; "read" for its
            sources alone.
        version: of the engine that this was done with; "" where it was no numbered one.
        date: of that, as in 2026-11-26; "" where it was not written down.
        rows: next tokens whose log-probabilities were compared.
        rows_off: of them, those that differed by more than 0.01 nats.
        remark: what of the engine was replaced for it or told from outside; "" for nothing.
    """

    kind: str
    version: str = ""
    date: str = ""
    rows: int = 0
    rows_off: int = 0
    remark: str = ""


def evidence(engine: Engine) -> Evidence:
    """What was done with ``engine``; what no result tells of was read."""
    result = _results().get(engine.name)
    return Evidence("read", engine.looked_at) if result is None else Evidence(**result)


@cache
def _results() -> Mapping[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return document


def evidence_line(engine: Engine, version: str | None, family: str) -> str:
    """A sentence on the evidence, and what of it was not tried.

    Args:
        engine: that is meant.
        version: of it; None where that is not known.
        family: of the plan's model, as in glm_moe_dsa.
    """
    known = evidence(engine)
    name = f"{engine.title} {known.version}".rstrip()
    when = f" on {known.date}" if known.date else ""
    if known.kind == "ran":
        line = (
            f"{name} ran the embedded model's plan as exported{when}; {known.rows_off} of {known.rows:,} rows of "
            "log-probabilities differ from those of transformers"
        )
    elif known.kind == "parsed":
        line = (
            f"the code of {name} that reads the settings took the embedded model's plan{when}; no model ran in it"
        )
    else:
        line = f"the sources of {name} were read{when}; nothing of it ran"
    if known.remark:
        line += f" ({known.remark})"
    others = [name for name in (version, family) if name not in (None, known.version, _FAMILY)]
    return line if known.kind == "read" or not others else f"{line}; not tried: {', '.join(map(str, others))}"
