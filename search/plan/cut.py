"""Another step of a searched plan, picked without measuring."""

from __future__ import annotations

from ...errors import PlanError, SettingError
from ...pattern import Pattern, kept_sites
from .file import check_plan
from .schema import LARGEST_DELTA, MeasuredPattern, Plan, Result


def cut(plan: Plan, keep: float | None = None, max_delta: float | None = None) -> Plan:
    """The plan with another step picked; nothing is measured, so the held-out check of another pattern is dropped.

    Args:
        plan: a searched plan; its order of removal is nested, so each step is a pattern of its own.
        keep: fraction of sites that stay full.
        max_delta: instead, the sparsest measured pattern whose loss increase is at most this.

    Raises:
        PlanError: the search did not go that far.
        SettingError: not exactly one of ``keep`` and ``max_delta``, or an impossible value.
    """
    if (keep is None) == (max_delta is None):
        raise SettingError("cut needs one of keep and max-delta", hint="e.g. --keep 0.5")
    sites = len(plan.model.site_layers)
    full = plan.all_full
    measured = {pattern.kept: pattern for pattern in [full, *plan.search.steps]}
    if keep is not None:
        kept = kept_sites(sites, keep)
        if kept not in measured:
            raise PlanError(
                f"keep {keep:g} is {kept} of {sites} sites, but the plan was searched down to {min(measured)}",
                hint="run search again with a lower --keep, or with --all",
            )
    else:
        check_max_delta(max_delta)
        kept = min(pattern.kept for pattern in measured.values() if _within(pattern, max_delta or 0.0))
    spread = full if kept == sites else None
    uniform = next((pattern for pattern in plan.search.uniform if pattern.kept == kept), spread)
    # Refinement belongs to one number of full sites; a cut to that number keeps the refined pattern.
    swapped = [swap for swap in plan.search.swaps if swap.kept == kept]
    chosen = swapped[-1] if swapped else measured[kept]
    layer_pattern = Pattern(chosen.pattern).over_layers(
        plan.model.site_layers, plan.model.layers, plan.model.shared_layers
    )
    result = Result(
        **{name: getattr(chosen, name) for name in MeasuredPattern.model_fields},
        keep=keep,
        max_delta=max_delta,
        sites=sites,
        layers=plan.model.layers,
        layer_pattern=layer_pattern,
        uniform=uniform,
    )
    same = plan.heldout is not None and plan.heldout.plan.pattern == result.pattern
    document = plan.model_dump() | {"result": result.model_dump()}
    if not same:
        document |= {"heldout": None, "probes": None}
    if kept != plan.result.kept:
        document["search"]["kept_chances"] = []
    return check_plan(document, "the plan that is cut from")


def _within(measured: MeasuredPattern, limit: float) -> bool:
    """Whether a loss increase is at most ``limit``: the upper end of its interval, if the plan has one."""
    return (measured.delta if measured.high is None else measured.high) <= limit


def check_max_delta(
    max_delta: float | None, option: str = "--max-delta", unit: str = "nats per token, e.g. 0.01"
) -> None:
    """Refuses a loss increase that no pattern could be held to; ``option`` sets it, in ``unit``.

    Raises:
        SettingError: negative, NaN or beyond what a plan can hold.
    """
    if max_delta is not None and not 0 <= max_delta <= LARGEST_DELTA:
        raise SettingError(
            f"{option} is {max_delta:g}",
            hint=f"give a loss increase from 0 to {LARGEST_DELTA:g} {unit}",
        )
