"""How to repeat a search: its command line, as far as the plan says how it was made."""

from __future__ import annotations

import shlex

from ...plan.schema import Plan

_DEFAULTS = {"--strategy": "fast", "--objective": "expected-loss", "--seed": "0", "--surrogate": "error"}


def search_command(plan: Plan) -> str:
    """The command that searches again what ``plan`` says; each option on a line of its own after the first."""
    tokens, search, result = plan.tokens, plan.search, plan.result
    asked = ("--max-delta", result.max_delta) if result.keep is None else ("--keep", result.keep)
    options: list[tuple[str, object]] = [
        ("--model", plan.model.id),
        ("--revision", plan.model.revision),
        ("--dataset", tokens.dataset),
        ("--dataset-subset", tokens.subset),
        ("--dataset-split", tokens.split),
        ("--dataset-revision", tokens.revision),
        ("--column", tokens.column),
        ("--window", tokens.window),
        ("--windows", "auto" if search.decided is not None else tokens.windows),
        ("--heldout", tokens.heldout_windows),
        ("--refine-windows", tokens.refinement_windows or None),
        ("--seed", tokens.seed),
        asked,
        ("--strategy", search.strategy),
        ("--objective", search.objective),
        ("--surrogate", search.surrogate),
        ("--pin", ",".join(map(str, search.pinned_layers)) or None),
        ("--refine-rounds", search.refine_rounds or None),
        ("--dtype", plan.run.dtype),
    ]
    words = [
        f"{name} {shlex.quote(_written(value))}"
        for name, value in options
        if value is not None and _DEFAULTS.get(name) != str(value)
    ]
    return "indexcache search " + " \\\n  ".join(words)


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
