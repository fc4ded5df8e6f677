"""The plan card: a README for a plan's repository on the hub, front matter and all, from the plan alone."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ...errors import ExportError
from ..export.engines import ENGINES
from ..export.settings import check_servable, export
from ..plan.schema import HeldOutRecord, Plan
from ..report.checks import CheckRecord
from ..report.drawing.template import markdown_cell
from ..report.tables import comparison_table, probes_table
from ..report.words import increase, percent

CARD_FILE = "card.md"
# Whose settings stand in the card itself; export prints those of all.
_SHOWN_ENGINES = ("vllm", "sglang")


def card(plan: Plan, checks: CheckRecord | None = None, has_fingerprint: bool = False) -> str:
    """The card's text: YAML between two lines of dashes, and Markdown.

    Args:
        plan: what is published.
        checks: of it, by eval, for held-out losses that the search did not measure.
        has_fingerprint: whether a fingerprint stands beside the plan, by which check tells what a server runs.
    """
    confidence, heldout = plan.search.confidence, plan.heldout
    if heldout is None and checks is not None and checks.heldout is not None:
        heldout = checks.heldout.losses
    text = _template().render(
        plan=plan,
        front=_front_matter(plan, heldout),
        model=_public(plan.model.id),
        dataset=_public(plan.tokens.dataset),
        share=percent(plan.result.kept / plan.result.sites),
        lead="" if heldout is None else increase(heldout.plan, confidence),
        comparison=comparison_table(plan, heldout),
        probes=probes_table(plan.probes, confidence) if plan.probes else None,
        settings=_settings(plan),
        engines=", ".join(ENGINES),
        fingerprint=has_fingerprint,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=False,  # Markdown, in which ``cell`` escapes what others wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_cell
    return environment.get_template("card.md.j2")


def _front_matter(plan: Plan, heldout: HeldOutRecord | None) -> str:
    """What the hub reads: tags, the base model where it is one of the hub's, and held-out increases.

    No licence is named: that is the publisher's to say.
    """
    from huggingface_hub.repocard_data import EvalResult, ModelCardData

    model, dataset = _public(plan.model.id), _public(plan.tokens.dataset)
    figures = [] if heldout is None else [("loss increase", heldout.plan.delta), ("loss", heldout.plan.loss)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=plan.tokens.subset,
            dataset_split=plan.tokens.split,
            metric_type="loss",
            metric_name=f"held-out {name}, nats per token",
            metric_value=round(value, 6),
        )
        for name, value in figures
    ]
    return ModelCardData(
        # Only what came from the hub has a commit; a folder of the same name is another model.
        base_model=model if plan.model.revision is not None else None,
        library_name="indexcache",
        tags=["indexcache", "deepseek-sparse-attention", plan.model.model_type],
        metrics=["loss"],
        model_name=f"{model}, {plan.result.kept} of {plan.result.sites} indexers",
        eval_results=results or None,
    ).to_yaml()


def _public(name: str) -> str:
    """A name of a model or a text; of an absolute path the last part, as the rest is one machine's."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute() or name.startswith("~"):
            return kind(name).name
    return name


def _settings(plan: Plan) -> list[tuple[str, str]]:
    """The settings as JSON of engines that take the plan, by their names."""
    taken = []
    for name in _SHOWN_ENGINES:
        try:
            exported = export(plan, name)
            check_servable(exported)
        except ExportError:
            continue
        taken.append((exported.engine, json.dumps(exported.settings)))
    return taken
