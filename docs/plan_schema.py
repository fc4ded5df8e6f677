"""Writes plan.schema.json, the JSON Schema of plan.json, from the models that read plans.

    python docs/plan_schema.py            says whether it is current, exit code 1 if not
    python docs/plan_schema.py --write    brings it up to date

A plan that fits it can still contradict itself, which only indexcache checks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from indexcache.search.plan.schema import CHECKSUM, Plan

DOCUMENT = Path(__file__).resolve().parent / "plan.schema.json"


def schema() -> dict[str, Any]:
    """The schema of the file: what a plan's model says, and the checksum that stands last."""
    document = Plan.model_json_schema()
    checksum = {
        "description": "The first 16 digits of the SHA-256 over all the rest as JSON with sorted keys.",
        "pattern": "^[0-9a-f]{16}$",
        "title": "Checksum",
        "type": "string",
    }
    document["properties"][CHECKSUM] = checksum
    # Written always, whatever a reader may do without.
    document["required"] = [*dict.fromkeys(["schema_version", *document["required"], CHECKSUM])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def text() -> str:
    """The file's text."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.write_text(text(), "utf-8")
    elif not DOCUMENT.is_file() or text() != DOCUMENT.read_text("utf-8"):
        sys.exit("docs/plan.schema.json is not current: run python docs/plan_schema.py --write")
