"""Renders a plan as report.md and as a self-contained report.html, with the curve as SVG."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import quote

from ...errors import one_line
from ...evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT
from ...pattern import layer_ranges
from ..plan.gate import LossIncrease
from ..plan.schema import HeldOutRecord, MeasuredPattern, Plan, PlanStep
from .checks import CheckRecord
from .figures import loss_curve, overlap_heatmap, prefill_bars
from .prefills import PrefillRecord
from .timing import Timing


def render(
    plan: Plan,
    stem: str = "",
    prefills: PrefillRecord | None = None,
    timing: Timing | None = None,
    checks: CheckRecord | None = None,
) -> dict[str, str]:
    """The report's files: their names, each after ``stem``, and texts; report.md shows the pictures.

    ``prefills`` are the plan's prefill times, where bench has measured them, ``timing`` is that of its search,
    ``checks`` are eval's.
    """
    pictures = {f"{stem}curve.svg": loss_curve(plan)}
    if plan.search.overlap_matrix:
        pictures[f"{stem}overlap.svg"] = overlap_heatmap(plan)
    context = _context(plan, pictures, checks)
    context["prefills"], context["timing"] = prefills, timing
    if prefills is not None:
        pictures[f"{stem}prefill.svg"] = context["prefill_picture"] = prefill_bars(prefills)
        context["prefill_file"] = f"{stem}prefill.svg"
    return {
        f"{stem}report.md": _template("report.md.j2", escape=False).render(context),
        f"{stem}report.html": _template("report.html.j2", escape=True).render(context),
        **pictures,
    }


def signed(value: float, error: float | None) -> str:
    """``+0.119 ± 0.004``, or without the error where there is none."""
    return f"{value:+.4f}" if error is None else f"{value:+.4f} ± {error:.4f}"


def interval_of(increase: LossIncrease, confidence: float | None) -> str:
    """The ends of a loss increase's interval, ``+0.0040 to +0.0440 at 95 %``, as far as they are known."""
    if increase.high is None:
        return "no interval: all is of one document"
    low = "up to" if increase.low is None else f"{increase.low:+.4f} to"
    return f"{low} {increase.high:+.4f}" + ("" if confidence is None else f" at {100 * confidence:g} %")


def increase(measured: MeasuredPattern | None) -> str:
    """A pattern's loss increase with its standard error, for tables."""
    return "not measured" if measured is None else signed(measured.delta, measured.standard_error)


def margin(step: PlanStep) -> str:
    """How far the runner-up was behind, with the standard error of that difference."""
    return "" if step.margin is None else signed(step.margin, step.margin_standard_error)


def shorter_window(plan: Plan) -> str:
    """Where a plan's windows are shorter than what the model takes, that they are; else nothing."""
    positions, window = plan.model.positions, plan.tokens.window
    if positions is None or window >= positions:
        return ""
    return (
        f"made on windows of {window:,} tokens; the model takes {positions:,}: eval --window measures a plan on "
        "longer ones"
    )


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
    environment.filters["increase"] = increase
    environment.filters["margin"] = margin
    environment.filters["signed"] = signed
    environment.filters["interval_of"] = interval_of
    environment.filters["cell"] = _markdown_cell
    environment.filters["target"] = quote
    return environment.get_template(name)


def _markdown_cell(value: object) -> str:
    """``value`` on one line, with nothing that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", html.escape(one_line(str(value)), quote=False))


def _heldout(plan: Plan, checks: CheckRecord | None) -> HeldOutRecord | None:
    """Held-out losses of this very pattern, from the search or else from eval."""
    records = [plan.heldout, checks.heldout.losses if checks and checks.heldout else None]
    return next((record for record in records if record and record.plan.pattern == plan.result.pattern), None)


def _headline(plan: Plan, heldout: HeldOutRecord | None) -> dict[str, Any]:
    """The figures to lead with: held-out ones, where there are any of this pattern."""
    if heldout is not None:
        return {"on": "held out", "plan": heldout.plan, "uniform": heldout.uniform}
    return {"on": "calibration", "plan": plan.result, "uniform": plan.result.uniform}


def _context(plan: Plan, pictures: dict[str, str], checks: CheckRecord | None) -> dict[str, Any]:
    heldout = _heldout(plan, checks)
    checks_by_group = [
        (GROUP_TITLES[group], getattr(checks, group)) for group in (HELD_OUT, CALIBRATION) if checks is not None
    ]
    uniform = {pattern.kept: pattern for pattern in plan.search.uniform}
    source_layers = [plan.model.site_layers[source] for source in plan.pattern.sources()]
    return {
        "plan": plan,
        "how": _how(plan),
        "headline": _headline(plan, heldout),
        "heldout": heldout,
        "checks": [(group, check) for group, check in checks_by_group if check is not None],
        "evaluation": checks,
        "shorter_window": shorter_window(plan),
        "pictures": list(pictures.values()),
        "picture_files": list(pictures),
        "title": f"indexcache plan for {plan.model.id}",
        "steps": [(step, uniform.get(step.kept)) for step in plan.search.steps],
        "cells": [
            {"layer": layer, "role": role, "source": source}
            for layer, role, source in zip(plan.model.site_layers, plan.result.pattern, source_layers, strict=True)
        ],
        "informative": f"{plan.tokens.informative_share:.1%}",
        "choosing": f"indexers choose where a query sees more than {plan.model.selection_width} keys"
        if plan.model.selection_width
        else "where indexers begin to choose is not known",
        "ratio": f"{plan.result.kept / plan.result.sites:.1%}",
    }


def _how(plan: Plan) -> str:
    """How each step's site was chosen, and what an older plan had to do with it."""
    ways = {
        "exact": "Each step turns one more site shared: of all, the one whose loss stays lowest.",
        "fast": "Each step turns one more site shared, the one whose loss stays lowest of those measured: sites "
        "that were clearly dearer before are not measured again.",
        "blocks": f"Each step turns one more site shared, the one of its block whose loss stays lowest; "
        f"{plan.search.blocks} blocks of layers take turns.",
    }
    way = ways.get(plan.search.strategy, "Each step turns one more site shared.")
    if plan.search.pinned_layers:
        way += (
            f" Pinned to stay full, in the uniform patterns too: layers {layer_ranges(plan.search.pinned_layers)}."
        )
    if plan.search.init is None:
        return way
    changed = ", ".join(map(str, plan.search.init.changed_steps)) or "no step"
    return f"{way} An older plan's order was tried first; the two differ at {changed} (full sites left)."
