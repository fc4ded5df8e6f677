"""Another step of a searched plan, picked without measuring."""

from __future__ import annotations

from ...errors import PlanError, SettingError, one_line
from ...pattern import Pattern, kept_sites, layer_ranges
from ..gate import Gate
from .file import check_plan
from .schema import LARGEST_DELTA, DistilledRecord, MeasuredPattern, Plan, Result


def cut(plan: Plan, keep: float | None = None, max_delta: float | None = None) -> Plan:
    """The plan with another step picked; nothing is measured, so the held-out check of another pattern is dropped.

    Args:
        plan: a searched plan, each of whose measured patterns can be picked: the steps, which are nested, those of
            layer costs where there are no steps, and what refinement made of one of them.
        keep: fraction of sites that stay full.
        max_delta: instead, the sparsest measured pattern whose loss increase is at most this.

    Raises:
        PlanError: the search did not go that far, or measured no pattern of that many full sites; or the plan's
            indexers were distilled for its own pattern.
        SettingError: not exactly one of ``keep`` and ``max_delta``, or an impossible value.
    """
    if (keep is None) == (max_delta is None):
        raise SettingError("cut needs one of keep and max-delta", hint="e.g. --keep 0.5")
    if plan.distilled is not None:
        raise _fits_one_pattern(plan.distilled)
    sites = len(plan.model.site_layers)
    measured = measured_patterns(plan)
    if keep is not None:
        kept = kept_sites(sites, keep)
        if kept not in measured:
            raise _not_measured(plan, keep, kept, sorted(measured))
    else:
        check_max_delta(max_delta)
        gate = gate_of(plan)
        kept = min(pattern.kept for pattern in measured.values() if gate.passes(pattern, max_delta))
    spread = plan.all_full if kept == sites else None
    uniform = next((pattern for pattern in plan.search.uniform if pattern.kept == kept), spread)
    chosen = measured[kept]
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


def cut_pair(plan: Plan, prefill_keep: float, decode_keep: float) -> tuple[Plan, Plan]:
    """Two cuts, for servers that prefill and others that decode: the second's full layers are full in the first.

    A prefill server hands over the index keys that its full layers wrote. A full layer of the decode server scores
    the whole prompt, so that it has to have been full there. The other direction needs nothing: index keys of a
    layer that is shared in decoding are not read.

    Args:
        plan: a searched plan.
        prefill_keep: fraction of sites that stay full while prompts are read.
        decode_keep: while tokens are written.

    Raises:
        PlanError: see ``cut``; or one pattern does not contain the other, as a search's steps always do.
        SettingError: more is kept to decode than to prefill, or an impossible value.
    """
    prefill, decode = cut(plan, prefill_keep), cut(plan, decode_keep)
    if decode.result.kept > prefill.result.kept:
        raise SettingError(
            f"--decode-keep {decode_keep:g} keeps more than --prefill-keep {prefill_keep:g}: layers that are full "
            "in decoding need index keys of the prompt, which only layers that are full in prefill write",
            hint="keep at least as much to prefill as to decode",
        )
    missing = sorted(set(decode.pattern.full) - set(prefill.pattern.full))
    if missing:
        layers = layer_ranges([plan.model.site_layers[site] for site in missing])
        raise PlanError(
            f"the pattern of {decode.result.kept} sites keeps layers {layers}, that of {prefill.result.kept} "
            "does not: it was refined or comes from layer costs, and only a search's steps are nested",
            hint="choose other budgets, or search again without refinement: --refine 0",
        )
    return prefill, decode


def measured_patterns(plan: Plan) -> dict[int, MeasuredPattern]:
    """The pattern that a cut takes, for every number of full sites that has one.

    It is a step, or where layer costs chose the pattern that they give. Refinement belongs to one number of full
    sites, at which its end goes before the step. What the plan picked goes before all.
    """
    search = plan.search
    chosen: list[MeasuredPattern] = [plan.all_full, *(search.dp if search.strategy == "dp" else search.steps)]
    # The best end is where the swaps led, or a start that none improved.
    ends = {start.end for start in search.starts[:1]}
    baselines = [*search.uniform, *search.dp]
    refined = [pattern for pattern in [*baselines, *chosen] if pattern.pattern in ends]
    return {pattern.kept: pattern for pattern in [*chosen, *search.swaps, *refined, plan.result]}


def _not_measured(plan: Plan, keep: float, kept: int, measured: list[int]) -> PlanError:
    """The error for a number of full sites of which the plan has no pattern."""
    sites = measured[-1]
    if kept < measured[0]:
        again = "--all" if plan.search.strategy == "dp" else "a lower --keep, or with --all"
        return PlanError(
            f"keep {keep:g} is {kept} of {sites} sites, but the plan was searched down to {measured[0]}",
            hint=f"run search again with {again}: what its journal holds is not measured again",
        )
    return PlanError(
        f"keep {keep:g} is {kept} of {sites} sites, of which the plan has no pattern: "
        f"it has those of {', '.join(map(str, measured))}",
        hint="run search again with --all: what its journal holds is not measured again",
    )


def _fits_one_pattern(distilled: DistilledRecord) -> PlanError:
    return PlanError(
        "the plan's indexers are distilled for its own pattern and fit no other: none can be cut from it",
        hint=f"cut the plan of {one_line(distilled.source)} that it was distilled from, and distill that cut",
    )


def gate_of(plan: Plan) -> Gate:
    """The gate of the plan's search: the interval if it does not say, the estimate if it has no intervals."""
    gate, confidence = plan.search.gate, plan.search.confidence
    return Gate("estimate") if confidence is None else Gate(gate or "interval", confidence)


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
