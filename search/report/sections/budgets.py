"""Every budget of a plan, as the slider shows it: the plan is nested, so that one file has them all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...plan.cut import measured_patterns, with_pattern
from ...plan.schema import HeldOutRecord, Plan, ProbesRecord
from ...price.prefills import PrefillRecord
from ..checks import CheckRecord
from ..worth import Worth
from .settings import EngineSettings
from .speed import memory_words, speeds
from .verdict import Headline, Verdict, headlines, verdict

_NUMBER = re.compile(r"(\d[\d.,]*)")


@dataclass(frozen=True)
class Budget:
    """A number of full sites, the plan with the pattern that goes with it, and what is known of that."""

    plan: Plan
    heldout: HeldOutRecord | None
    verdict: Verdict
    headlines: tuple[Headline, ...]
    memory: str

    @property
    def kept(self) -> int:
        """Full sites."""
        return self.plan.result.kept


def budgets(
    plan: Plan, checks: CheckRecord | None, prefills: PrefillRecord | None, worth: Worth, name: str
) -> tuple[Budget, ...]:
    """All budgets of ``plan``, from all full on; only its own where its indexers are distilled for that.

    Args:
        plan: as it is.
        checks: what eval measured of it.
        prefills: what bench did.
        worth: what else is known of its use.
        name: of its file, for commands.
    """
    plans = {plan.result.kept: plan}
    if plan.distilled is None:
        others = measured_patterns(plan)
        plans = {kept: with_pattern(plan, others[kept]) for kept in sorted(others, reverse=True)} | plans
    return tuple(_budget(budget, plan, checks, prefills, worth, name) for budget in plans.values())


def _budget(
    budget: Plan, plan: Plan, checks: CheckRecord | None, prefills: PrefillRecord | None, worth: Worth, name: str
) -> Budget:
    heldout = heldout_of(budget, checks)
    probes = probes_of(budget, checks)
    faster = speeds(prefills, worth.decodes, plan, budget)
    return Budget(
        budget,
        heldout,
        verdict(budget, heldout, probes, faster, name),
        tuple(headlines(budget, heldout, probes)),
        memory_words(budget, worth.sizes),
    )


def heldout_of(budget: Plan, checks: CheckRecord | None) -> HeldOutRecord | None:
    """Held-out losses of this very pattern, from the search or else from eval."""
    records = [budget.heldout]
    if checks is not None:
        records += [checks.heldout.losses if checks.heldout else None]
        records += [checks.curve.at(budget.result.pattern) if checks.curve else None]
    return next((record for record in records if record and record.plan.pattern == budget.result.pattern), None)


def probes_of(budget: Plan, checks: CheckRecord | None) -> ProbesRecord | None:
    """Scores on probes of this very pattern, from the search or else from eval."""
    records = [budget.probes, checks.probes.scores if checks and checks.probes else None]
    return next((record for record in records if record and record.pattern == budget.result.pattern), None)


def as_data(measured: Sequence[Budget], engines: Sequence[EngineSettings], picked: int) -> dict[str, Any]:
    """What the page's script needs, ready for JSON; ``picked`` full sites are the plan's own.

    Texts that most budgets share stand once, in ``words``, and are given by their number.
    """
    words: dict[str, int] = {}

    def number(text: str) -> int:
        return words.setdefault(text, len(words))

    lines = [
        {
            "kept": budget.kept,
            "sites": budget.plan.result.pattern,
            **_over_layers(budget.plan),
            "sentence": budget.verdict.sentence,
            "gaps": number(budget.verdict.gaps),
            "memory": [part if _NUMBER.search(part) else number(part) for part in _NUMBER.split(budget.memory)],
            "figures": [
                [line.name, line.figure, line.interval, number(line.caption)] for line in budget.headlines
            ],
        }
        for budget in measured
    ]
    return {
        "picked": [budget.kept for budget in measured].index(picked),
        "words": list(words),
        "budgets": lines,
        "engines": {
            engine.name: {"bySite": engine.by_site, "pieces": engine.pieces, "others": engine.others}
            for engine in engines
            if engine.able
        },
    }


def _over_layers(plan: Plan) -> dict[str, str]:
    """The pattern over layers; nothing where every layer is a site."""
    layers = plan.result.layer_pattern
    return {} if layers == plan.result.pattern else {"layers": layers}
