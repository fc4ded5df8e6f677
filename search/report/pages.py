"""Renders a plan as report.md and as a self-contained report.html, with the curve as SVG."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from ...errors import one_line
from ...system.console import byte_count
from ..plan.schema import HeldOutRecord, MeasuredPattern, Plan, ProbeRecord, ProbesRecord
from ..price.prefills import PrefillRecord
from . import prose
from .certainty import decided_steps, least_chance, strip, strip_text
from .checks import CheckRecord
from .evaluation import checks_again, checks_elsewhere
from .figures import loss_curve, overlap_heatmap, prefill_bars
from .tables import (
    Table,
    comparison_table,
    distilled_pair,
    distilled_segments,
    in_sample,
    interchange_table,
    probes_table,
    starts_table,
    steps_table,
    swaps_table,
)
from .timing import Timing
from .words import increase, percent, signed, stay
from .worth import Worth, decode_section, memory_sentence


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
    pictures = {f"{stem}curve.svg": loss_curve(plan, _heldout(plan, checks))}
    if plan.search.overlap_matrix:
        pictures[f"{stem}overlap.svg"] = overlap_heatmap(plan)
    context = _context(plan, pictures, checks)
    context["prefills"], context["timing"] = prefills, timing
    context["memory"], context["decodes"] = memory_sentence(plan, worth.sizes), decode_section(plan, worth.decodes)
    if prefills is not None:
        pictures[f"{stem}prefill.svg"] = context["prefill_picture"] = prefill_bars(prefills)
        context["prefill_file"] = f"{stem}prefill.svg"
    markdown = _template("report.md.j2", escape=False).render(context)
    return {
        f"{stem}report.md": re.sub(r"\n{3,}", "\n\n", markdown),
        f"{stem}report.html": _template("report.html.j2", escape=True).render(context),
        **pictures,
    }


def _template(name: str, escape: bool) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown_cell
    environment.filters["code"] = _with_code
    environment.filters["target"] = quote
    return environment.get_template(name)


def _markdown_cell(value: object) -> str:
    """``value`` on one line, with nothing that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", html.escape(one_line(str(value)), quote=False))


def _with_code(text: str) -> str:
    """``text`` as HTML, with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _heldout(plan: Plan, checks: CheckRecord | None) -> HeldOutRecord | None:
    """Held-out losses of this very pattern, from the search or else from eval."""
    records = [plan.heldout, checks.heldout.losses if checks and checks.heldout else None]
    return next((record for record in records if record and record.plan.pattern == plan.result.pattern), None)


def _context(plan: Plan, pictures: Mapping[str, str], checks: CheckRecord | None) -> dict[str, Any]:
    heldout = _heldout(plan, checks)
    confidence, comparison = plan.search.confidence, comparison_table(plan, heldout)
    return {
        "plan": plan,
        "prose": _prose(plan, heldout, comparison),
        "title": f"indexcache plan for {plan.model.id}",
        "ratio": f"{plan.result.kept / plan.result.sites:.1%}",
        "headlines": _headlines(plan, heldout),
        "sites": strip(plan),
        "strip": strip_text(strip(plan)),
        "heldout": heldout,
        "comparison": comparison,
        "probes": probes_table(plan.probes, confidence) if plan.probes else None,
        "unskilled": _unskilled(plan.probes),
        "distilled": None if plan.distilled is None else (distilled_pair(plan), distilled_segments(plan)),
        "decided": decided_steps(plan),
        "interchanges": interchange_table(plan),
        "pictures": list(pictures.values()),
        "picture_files": list(pictures),
        "again": checks_again(checks, plan.tokens.window),
        "elsewhere": checks_elsewhere(checks),
        "steps": steps_table(plan) if plan.search.steps else None,
        "starts": starts_table(plan),
        "swaps": swaps_table(plan),
        "streamed": byte_count(plan.cost.weight_bytes) if plan.cost.weight_bytes else None,
        "choosing": f"indexers choose where a query sees more than {plan.model.selection_width} keys"
        if plan.model.selection_width
        else "where indexers begin to choose is not known",
    }


def _prose(plan: Plan, heldout: HeldOutRecord | None, comparison: Table) -> dict[str, str]:
    """The sentences of the report by the part that they explain."""
    return {
        "incomplete": prose.INCOMPLETE,
        "shorter_window": prose.shorter_window(plan),
        "chances": prose.chances(plan),
        "heldout": prose.held_out(plan, heldout),
        "columns": prose.columns(plan, comparison),
        "distilled": prose.distilled(plan),
        "probes": prose.PROBES,
        "chosen_by": prose.chosen_by(plan),
        "decided": prose.decided(plan),
        "undecided": prose.undecided(plan),
        "curve": prose.curve(plan, heldout),
        "steps": prose.steps(plan),
        "refinement": prose.refinement(plan),
        "windows": prose.windows(plan),
    }


class _Headline(NamedTuple):
    """A figure to lead with: what it is of, the figure, its interval, and what it is in which unit."""

    name: str
    figure: str
    interval: str
    title: str
    unit: str


def _headlines(plan: Plan, heldout: HeldOutRecord | None) -> list[_Headline]:
    """What leads: increases of the plan and its baselines, held out where possible, probes, and decided steps."""
    where, sample = ("in sample", in_sample(plan)) if heldout is None else ("held out", {})
    by_dp = sample.get("dp") if heldout is None else heldout.dp
    increases: list[tuple[str, MeasuredPattern | ProbeRecord | None, str, str]] = [
        ("plan", heldout.plan if heldout else plan.result, f"loss increase, {where}", "nats per token"),
        ("uniform", heldout.uniform if heldout else plan.result.uniform, "uniform interleaving", ""),
    ]
    if plan.distilled is not None:
        before = plan.distilled.heldout.before
        increases.insert(1, ("before", before, "before distilling, held out", ""))
    if by_dp is not None and by_dp.pattern != plan.result.pattern:
        increases.append(("dp", by_dp, "dynamic programming over layer costs", ""))
    if plan.probes is not None:
        uniform = signed(plan.probes.all.uniform.loss - plan.probes.all.full.loss)
        unit = f"nats per answer token; uniform {uniform}"
        increases.append(("probes", plan.probes.all, "loss increase on probes", unit))
    lines = []
    for name, measured, title, unit in increases:
        figure, _, spread = increase(measured, plan.search.confidence).partition(" ")
        if measured is None:
            figure, spread = "not measured", ""
        lines.append(_Headline(name, figure, spread, title, unit))
    if (decided := decided_steps(plan)) is not None:
        figure, title = f"{decided.count} of {decided.steps}", f"steps decided at {percent(decided.confidence)}"
        chance = least_chance(plan)
        lines.append(_Headline("steps", figure, "", title, "" if chance is None else stay(chance)))
    return lines


# Where all full predicts fewer answer tokens than this, damage can hardly show.
_SKILLED = 0.2


def _unskilled(probes: ProbesRecord | None) -> str:
    """The kinds of probes that the model itself hardly answers."""
    return ", ".join(record.kind for record in probes.kinds if record.full.accuracy < _SKILLED) if probes else ""
