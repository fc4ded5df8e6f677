"""The table of what was done with each engine, made from the results here, in docs/engines.md and for export."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indexcache.search.export import evidence
from indexcache.search.export.engines import ENGINES

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "engines.md"
START, END = "<!-- evidence: begin -->\n", "<!-- evidence: end -->\n"
_KINDS = ("ran", "parsed", "read")


def results() -> dict[str, dict[str, Any]]:
    """The results that are kept, by engine."""
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return {document["engine"]: document for document in documents}


def known() -> dict[str, evidence.Evidence]:
    """What was done with each engine that ``export`` knows, what says most first."""
    kept = {name: evidence.Evidence(**fields) for name, fields in shipped(results()).items()}
    all_engines = {
        name: kept.get(name, evidence.Evidence("read", engine.looked_at)) for name, engine in ENGINES.items()
    }
    return dict(sorted(all_engines.items(), key=lambda item: _KINDS.index(item[1].kind)))


def shipped(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What ``export`` needs of the results."""
    return {
        name: {
            "kind": result["evidence"],
            "version": result["version"],
            "date": result["date"],
            "rows": result.get("rows", 0),
            "rows_off": (result.get("rows_off") or {}).get("plan", 0),
            "remark": result.get("remark", ""),
        }
        for name, result in results.items()
    }


def table() -> str:
    """The table in Markdown."""
    lines = ["| engine | version | evidence | date | rows that differ | remark |", "|---|---|---|---|---:|---|"]
    for name, known_of in known().items():
        rows = f"{known_of.rows_off} of {known_of.rows:,}" if known_of.rows else ""
        cells = (ENGINES[name].title, known_of.version, known_of.kind, known_of.date, rows, known_of.remark)
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def updated(document: str) -> str:
    """``document`` with the table in its place."""
    before, _, rest = document.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{table()}\n{END}{after}"


def shipped_text() -> str:
    """What stands in evidence.json."""
    return json.dumps(shipped(results()), indent=2) + "\n"


def write() -> None:
    """Makes the table, and what ``export`` reads, from the results."""
    evidence.FILE.write_text(shipped_text(), "utf-8")
    DOCUMENT.write_text(updated(DOCUMENT.read_text("utf-8")), "utf-8")


def keep(documents: Sequence[Mapping[str, Any]]) -> None:
    """Puts results in the place of earlier ones of the same engines, and makes the table."""
    for document in documents:
        text = json.dumps(document, indent=2) + "\n"
        (RESULTS / f"{document['engine']}.json").write_text(text, "utf-8")
    write()


def main() -> int:
    """Writes, or says with exit code 1 that what is written is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make both from the results")
    if parser.parse_args().write:
        write()
        return 0
    current = evidence.FILE.read_text("utf-8") == shipped_text()
    return int(not current or DOCUMENT.read_text("utf-8") != updated(DOCUMENT.read_text("utf-8")))


if __name__ == "__main__":
    sys.exit(main())
