"""What must agree within a plan, so that none of its parts can speak of another search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ...errors import PatternError
from ...pattern import Pattern
from .schema import MeasuredPattern, Plan

# A difference of losses is computed in pairs and then averaged, the losses are averaged first.
_ROUNDING = 1e-9


def check_consistency(plan: Plan) -> None:
    """Refuses a plan whose fields contradict each other.

    Raises:
        ValueError: names the field and what it should agree with.
    """
    _check_layers(plan)
    _check_tokens(plan)
    for field, pattern, baseline in _measured_patterns(plan):
        _check_measured(field, pattern, baseline, plan)
    _check_steps(plan)
    _check_certainty(plan)
    _check_result(plan)
    _check_heldout(plan)
    _check_distilled(plan)
    if (plan.search.students is not None) != (plan.search.strategy == "distilled"):
        raise ValueError("search.students has to be there where search.strategy is distilled, and only there")


def _check_layers(plan: Plan) -> None:
    sites, shared, layers = plan.model.site_layers, plan.model.shared_layers, plan.model.layers
    for name, numbers in (("site_layers", sites), ("shared_layers", shared)):
        if numbers != sorted(set(numbers)) or any(number >= layers for number in numbers):
            raise ValueError(f"model.{name} must be ascending layer ids below model.layers")
    if not sites or set(sites) & set(shared):
        raise ValueError("model.site_layers must name layers, and none of model.shared_layers")
    pinned = plan.search.pinned_layers
    if pinned != sorted(set(pinned)) or not set(pinned) <= set(sites):
        raise ValueError("search.pinned_layers must be ascending and of model.site_layers")


def _check_tokens(plan: Plan) -> None:
    tokens, width = plan.tokens, plan.model.selection_width
    informative = max(0, tokens.window - 1 - width)
    if tokens.labels != tokens.window - 1 or tokens.labels < 1:
        raise ValueError("tokens.labels must be tokens.window - 1 and at least 1")
    if tokens.informative_positions != informative:
        raise ValueError("tokens.informative_positions does not follow from the window and model.selection_width")
    if abs(tokens.informative_share - informative / tokens.labels) > 1e-5:
        raise ValueError("tokens.informative_share is not informative_positions / labels")


def _measured_patterns(plan: Plan) -> Iterator[tuple[str, MeasuredPattern, float]]:
    """Every measured pattern of the plan: its field, itself, and the loss of all full on the same windows."""
    search = plan.search
    lists: dict[str, Sequence[MeasuredPattern]] = {
        "steps": search.steps,
        "swaps": search.swaps,
        "dp": search.dp,
        "uniform": search.uniform,
        "overlap": search.overlap,
    }
    for name, patterns in lists.items():
        for number, pattern in enumerate(patterns):
            yield f"search.{name}.{number}", pattern, search.baseline_loss
    distilled = plan.distilled
    yield "result", plan.result, search.baseline_loss if distilled is None else distilled.calibration.baseline_loss
    if plan.result.uniform is not None:
        yield "result.uniform", plan.result.uniform, search.baseline_loss
    if plan.heldout is not None:
        yield "heldout.plan", plan.heldout.plan, plan.heldout.baseline_loss
        yield "heldout.uniform", plan.heldout.uniform, plan.heldout.baseline_loss
        if plan.heldout.dp is not None:
            yield "heldout.dp", plan.heldout.dp, plan.heldout.baseline_loss
    for name in ("calibration", "heldout") if distilled is not None else ():
        losses = getattr(distilled, name)
        yield f"distilled.{name}.before", losses.before, losses.baseline_loss
        yield f"distilled.{name}.after", losses.after, losses.baseline_loss


def _check_measured(field: str, measured: MeasuredPattern, baseline: float, plan: Plan) -> None:
    sites, pinned = len(plan.model.site_layers), plan.pinned_sites
    try:
        pattern = Pattern.parse(measured.pattern, sites)
    except PatternError as error:
        raise ValueError(f"{field}.pattern: {error}") from None
    if not set(pinned) <= set(pattern.full):
        raise ValueError(f"{field}.pattern shares a layer of search.pinned_layers")
    if pattern.kept != measured.kept:
        raise ValueError(f"{field}.kept is {measured.kept}, but its pattern keeps {pattern.kept}")
    if not math.isclose(measured.delta, measured.loss - baseline, rel_tol=1e-6, abs_tol=_ROUNDING):
        raise ValueError(f"{field}.delta is not its loss less the baseline's")
    if ".uniform" in field and pattern != Pattern.uniform(sites, pattern.kept, pinned):
        raise ValueError(f"{field}.pattern is not spread evenly")


def _check_steps(plan: Plan) -> None:
    pattern = Pattern.all_full(len(plan.model.site_layers))
    for number, step in enumerate(plan.search.steps):
        removed = step.removed_site
        if removed not in pattern.full[1:] or str(pattern.share(removed)) != step.pattern:
            raise ValueError(f"search.steps.{number} does not remove one full site of the step before it")
        if step.removed_layer != plan.model.site_layers[removed]:
            raise ValueError(f"search.steps.{number}.removed_layer is not the layer of its removed_site")
        pattern = Pattern(step.pattern)


def _check_certainty(plan: Plan) -> None:
    """What a search says of how sure it is, is of the model's own sites."""
    search, sites = plan.search, plan.model.site_layers
    if len(search.kept_chances) not in (0, len(sites)):
        raise ValueError("search.kept_chances must have one chance a site, or none at all")
    named = {layer for step in search.steps for layer in step.undecided_layers or ()}
    named |= {layer for tie in search.ties for layer in (tie.removed_layer, tie.kept_layer)}
    if not named <= set(sites):
        raise ValueError("search.steps and search.ties must name layers of model.site_layers")


def _check_result(plan: Plan) -> None:
    result, sites = plan.result, len(plan.model.site_layers)
    if result.sites != sites:
        raise ValueError(f"result.sites is {result.sites}, but model.site_layers has {sites}")
    if result.layers != plan.model.layers:
        raise ValueError(f"result.layers is {result.layers}, but model.layers is {plan.model.layers}")
    if (result.keep is None) == (result.max_delta is None):
        raise ValueError("exactly one of result.keep and result.max_delta must be set")
    if plan.distilled is None:
        _check_picked(plan)
    if result.uniform is not None and result.uniform.kept != result.kept:
        raise ValueError("result.uniform.kept is not result.kept")
    spelled = Pattern(result.pattern).over_layers(
        plan.model.site_layers, plan.model.layers, plan.model.shared_layers
    )
    if result.layer_pattern != spelled:
        raise ValueError("result.layer_pattern does not spell result.pattern over the layers")


def _check_picked(plan: Plan) -> None:
    """What was picked, the search measured; a distilled plan may have any pattern."""
    search, result = plan.search, plan.result
    measured = [*search.steps, *search.swaps, *search.dp]
    losses = {pattern.pattern: pattern.loss for pattern in measured}
    losses |= {start.end: start.calibration_loss for start in search.starts if start.calibration_loss is not None}
    losses["F" * result.sites] = plan.search.baseline_loss
    if losses.get(result.pattern) != result.loss:
        raise ValueError(
            "result.pattern and result.loss are of no step, of no swap and no end of refinement, nor of all full"
        )


def _check_heldout(plan: Plan) -> None:
    if plan.probes is not None and plan.probes.pattern != plan.result.pattern:
        raise ValueError("probes.pattern is not result.pattern")
    if plan.heldout is None:
        return
    if plan.heldout.plan.pattern != plan.result.pattern:
        raise ValueError("heldout.plan.pattern is not result.pattern")
    if plan.heldout.uniform.kept != plan.result.kept:
        raise ValueError("heldout.uniform.kept is not result.kept")


def _check_distilled(plan: Plan) -> None:
    """Indexers are distilled for the plan's own pattern, and what it costs is measured with them."""
    distilled, layers = plan.distilled, plan.model.site_layers
    if distilled is None:
        return
    for name in ("calibration", "heldout"):
        losses = getattr(distilled, name)
        if {losses.before.pattern, losses.after.pattern} != {plan.result.pattern}:
            raise ValueError(f"distilled.{name} is not of result.pattern")
    full = Pattern(plan.result.pattern).full
    if [segment.layer for segment in distilled.segments] != [layers[site] for site in full]:
        raise ValueError("distilled.segments are not of the full sites of result.pattern")
    if not any(segment.written for segment in distilled.segments):
        raise ValueError("distilled.segments has none that was written")
    if plan.result.loss != distilled.calibration.after.loss:
        raise ValueError("result.loss is not that of distilled.calibration.after")
    if plan.heldout is None or plan.heldout.plan != distilled.heldout.after:
        raise ValueError("heldout.plan is not distilled.heldout.after")
