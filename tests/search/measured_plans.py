"""What bench and eval leave beside a plan, made up: times, and every budget on held-out windows."""

from indexcache.pattern import Pattern
from indexcache.search.plan.cut import measured_patterns
from indexcache.search.plan.schema import MeasuredPattern
from indexcache.search.price.prefills import PrefillPoint, PrefillRecord, PrefillTime
from indexcache.search.report.checks import CheckRecord, CurveCheck, CurveLosses, PositionLosses, plan_sha256


def as_large(plan, sites):
    """The plan as that of a model of so many layers would be, a quarter kept: for its size only."""
    first = plan.search.steps[0]
    roles, steps, uniform = ["F"] * sites, [], []
    for number in range(sites - sites // 4):
        layer = 1 + number * 17 % (sites - 1)
        roles[layer] = "S"
        pattern, delta = "".join(roles), 0.001 * number
        values = {"kept": pattern.count("F"), "delta": delta, "low": delta - 0.002, "high": delta + 0.003}
        others = list(range(1, sites, 3))
        found = {"pattern": pattern, "removed_layer": layer, "undecided_layers": others}
        steps.append(first.model_copy(update=values | found))
        spread = str(Pattern.uniform(sites, values["kept"]))
        uniform.append(MeasuredPattern(loss=3.0, standard_error=0.1, pattern=spread, **values))
    last = steps[-1]
    picked = {name: getattr(last, name) for name in MeasuredPattern.model_fields}
    more = {"sites": sites, "layers": sites, "layer_pattern": last.pattern, "uniform": uniform[-1]}
    model = plan.model.model_copy(update={"layers": sites, "site_layers": list(range(sites))})
    search = plan.search.model_copy(
        update={"steps": steps, "uniform": uniform, "dp": uniform, "kept_chances": [0.5] * sites, "ties": []}
    )
    return plan.model_copy(
        update={
            "model": model,
            "search": search,
            "result": plan.result.model_copy(update=picked | more),
            "heldout": plan.heldout.model_copy(update={"plan": last, "uniform": uniform[-1], "dp": None}),
        }
    )


def prefills(plan, device="cpu"):
    """Four times faster at 128K, half of that in reach of indexers."""
    times = (PrefillTime(seconds=8.0, indexer_share=0.9), PrefillTime(seconds=2.0, indexer_share=0.5))
    return PrefillRecord(
        model="m", config_sha256=plan.model.config_sha256, pattern=plan.result.pattern, device=device,
        dtype="float32", indexer="stock", attention="stock", random_weights=False, repeats=1, versions={},
        points=[PrefillPoint(context=131072, all_full=times[0], plan=times[1])],
    )  # fmt: skip


def curve_check(plan):
    """A curve in which a budget costs a hundredth for each indexer that is missing, uniform ten times that."""
    sites, picked = plan.result.sites, plan.result.pattern

    def measured(pattern, delta):
        return MeasuredPattern(
            kept=pattern.count("F"), pattern=pattern, loss=2 + delta, delta=delta, standard_error=0.001,
            low=delta - 0.002, high=delta + 0.002,
        )  # fmt: skip

    patterns = [
        found.pattern for kept, found in sorted(measured_patterns(plan).items(), reverse=True) if kept < sites
    ]
    searched = [measured(pattern, 0.01 * pattern.count("S")) for pattern in patterns]
    uniform = [measured(pattern, 0.1 * pattern.count("S")) for pattern in patterns]
    losses = plan.heldout.model_copy(update={"plan": measured(picked, 0.07), "uniform": measured(picked, 0.7)})
    return CurveCheck(
        when="2026-01-01T00:00:00Z", model="m", device="cpu", dtype="float32", versions={}, passed=None,
        confidence=0.95, gate="interval", windows=4,
        losses=CurveLosses(baseline_loss=2.0, searched=searched, uniform=uniform),
        positions=[PositionLosses(first=16, last=31, losses=losses)],
    )  # fmt: skip


def with_curve(plan):
    return CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern, curve=curve_check(plan))
