"""Renders a plan as report.md and as a self-contained report.html, with its pictures as SVG."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from ...system.console import byte_count
from ..plan.schema import Plan
from ..price.prefills import PrefillRecord
from . import prose
from .certainty import decided_steps, strip, strip_text
from .checks import CheckRecord
from .drawing.bars import bar_file, bar_pictures
from .drawing.curve import curve_file, curve_of, curve_pictures
from .drawing.heatmap import heatmap_file, heatmap_pictures
from .drawing.template import source, template
from .sections.budgets import Budget, as_data, budgets
from .sections.evaluation import budget_table, checks_again, checks_elsewhere, positions
from .sections.layers import cells, full_layers, stages_sentence
from .sections.repeat import search_command
from .sections.settings import engine_settings
from .sections.speed import prefill_pairs, prefill_table
from .sections.verdict import NEVER_MEASURED
from .tables import (
    comparison_table,
    distilled_pair,
    distilled_segments,
    interchange_table,
    probes_table,
    starts_table,
    steps_table,
    swaps_table,
)
from .timing import Timing
from .worth import Worth, decode_section

_PREFILL = "Prefill seconds over the context, all full and under this plan"


def render(
    plan: Plan,
    stem: str = "",
    prefills: PrefillRecord | None = None,
    timing: Timing | None = None,
    checks: CheckRecord | None = None,
    worth: Worth = Worth(),
) -> dict[str, str]:
    """The report's files: their names, each after ``stem``, and texts; report.md shows the pictures.

    ``prefills`` are the plan's prefill times, where bench has measured them, ``timing`` is that of its search,
    ``checks`` are eval's, ``worth`` is what else is known of the plan's use.
    """
    name = f"{stem.removesuffix('-') or 'plan'}.json"
    name = name if re.fullmatch(r"\w[\w.-]*", name) else "PLAN"
    measured = budgets(plan, checks, prefills, worth, name)
    picked = next(budget for budget in measured if budget.kept == plan.result.kept)
    whole = checks.curve if checks else None
    curve = curve_of(plan, picked.heldout, whole.losses if whole else None)
    pictures = {f"{stem}curve.svg": curve_file(curve)}
    if plan.search.overlap_matrix:
        pictures[f"{stem}overlap.svg"] = heatmap_file(plan)
    pairs = prefill_pairs(prefills.points) if prefills else []
    if pairs:
        pictures[f"{stem}prefill.svg"] = bar_file(pairs, "prefill", _PREFILL)
    context = _context(plan, name, picked, prefills, checks) | {
        "timing": timing,
        "decodes": decode_section(plan, worth.decodes),
        "files": {file.removeprefix(stem).removesuffix(".svg"): file for file in pictures},
        "curves": curve_pictures(curve),
        "overlaps": heatmap_pictures(plan) if plan.search.overlap_matrix else [],
        "bars": bar_pictures(pairs, "prefill", _PREFILL) if pairs else [],
    }
    return {
        f"{stem}report.md": _markdown(context),
        f"{stem}report.html": _page(context, plan, measured),
        **pictures,
    }


def _markdown(context: dict[str, Any]) -> str:
    markdown: str = template("report.md.j2", escape=False).render(context)
    return re.sub(r"\n{3,}", "\n\n", markdown)


def _page(context: dict[str, Any], plan: Plan, measured: tuple[Budget, ...]) -> str:
    engines = engine_settings(plan, [budget.plan for budget in measured])
    data = as_data(measured, engines, plan.result.kept)
    page: str = template("report.html.j2").render(
        context | scripted() | {"engines": engines, "budgets": measured, "data": safe_json(data)}
    )
    return page


def scripted() -> dict[str, str]:
    """The page's script, and its hash, by which the page allows it and no other."""
    script = source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": script, "script_hash": f"sha256-{digest}"}


def safe_json(data: object) -> str:
    """``data`` as JSON that may stand in HTML: nothing in it is markup."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _context(
    plan: Plan, name: str, picked: Budget, prefills: PrefillRecord | None, checks: CheckRecord | None
) -> dict[str, Any]:
    heldout, confidence = picked.heldout, plan.search.confidence
    comparison = comparison_table(plan, heldout)
    return {
        "plan": plan,
        "prose": prose.sentences(plan, heldout, comparison, bool(checks and checks.curve)),
        "name": name,
        "title": f"indexcache plan for {plan.model.id}",
        "ratio": f"{plan.result.kept / plan.result.sites:.1%}",
        "verdict": picked.verdict,
        "never": NEVER_MEASURED,
        "headlines": picked.headlines,
        "cells": cells(plan),
        "strip": strip_text(strip(plan)),
        "full_layers": full_layers(plan),
        "stages": stages_sentence(plan),
        "memory": picked.memory,
        "heldout": heldout,
        "comparison": comparison,
        "probes": probes_table(plan.probes, confidence) if plan.probes else None,
        "warnings": prose.warnings(plan, heldout),
        "distilled": None if plan.distilled is None else (distilled_pair(plan), distilled_segments(plan)),
        "decided": decided_steps(plan),
        "interchanges": interchange_table(plan),
        "positions": positions(checks),
        "budget_table": budget_table(checks),
        "again": checks_again(checks, plan.tokens.window),
        "elsewhere": checks_elsewhere(checks),
        "steps": steps_table(plan) if plan.search.steps else None,
        "starts": starts_table(plan),
        "swaps": swaps_table(plan),
        "prefills": prefills,
        "prefill_times": prefill_table(prefills) if prefills else None,
        "command": search_command(plan),
        "streamed": byte_count(plan.cost.weight_bytes) if plan.cost.weight_bytes else None,
        "choosing": f"indexers choose where a query sees more than {plan.model.selection_width} keys"
        if plan.model.selection_width
        else "where indexers begin to choose is not known",
    }
