"""A plan as if its pattern had come out for another model, and what is said of its export."""

from indexcache.pattern import Pattern


def plan_for(plan, roles, family="glm_moe_dsa", sites=None, layers=None, shared=(), **changes):
    """The plan as if ``roles`` had come out for a model with these sites."""
    sites = list(range(len(roles))) if sites is None else sites
    layers = layers or len(roles)
    model = plan.model.model_copy(
        update={
            "layers": layers,
            "site_layers": sites,
            "shared_layers": list(shared),
            "model_type": family,
            "nested_config": None,
            **changes,
        }
    )
    spelled = Pattern(roles).over_layers(sites, layers, shared)
    result = plan.result.model_copy(update={"pattern": roles, "layer_pattern": spelled})
    return plan.model_copy(update={"model": model, "result": result})


def remarks(exported):
    """The remarks' texts."""
    return [remark.text for remark in exported.warnings]
