"""The verdict: what a plan keeps, how much faster and how much worse it is, how sure, and what nobody measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...plan.schema import HeldOutRecord, MeasuredPattern, Plan, ProbeRecord, ProbesRecord
from ..certainty import decided_steps, least_chance
from ..tables import in_sample
from ..words import increase, percent, signed, stay
from .speed import Speed

# Beyond this increase a perplexity says nothing that the increase does not.
_LARGEST_EXPONENT = 5.0
# What one kind of probes may lose of its right answers before it is named beside the mean of all kinds.
_HIDDEN_DROP = 0.1
NEVER_MEASURED = "No search measures scores on tasks, or speed inside a serving engine."


@dataclass(frozen=True)
class Verdict:
    """A plan in one sentence.

    Args:
        findings: what was measured, the parts of the sentence.
        missing: what was not, and the command that measures it.
    """

    findings: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The findings as a sentence."""
        text = "; ".join(self.findings)
        return f"{text[0].upper()}{text[1:]}."

    @property
    def gaps(self) -> str:
        """What was not measured as a sentence; "" where all was."""
        return f"Not measured: {'; '.join(self.missing)}." if self.missing else ""


def verdict(
    plan: Plan, heldout: HeldOutRecord | None, probes: ProbesRecord | None, speeds: Sequence[Speed], name: str
) -> Verdict:
    """The verdict on a plan.

    Args:
        plan: with the pattern that is judged.
        heldout: its check on held-out windows; None where there is none.
        probes: likewise on probes.
        speeds: how much faster it is, for the same pattern.
        name: of the plan's file, for commands.
    """
    result, missing = plan.result, list[str]()
    layers = "" if result.layers == result.sites else f", in {result.layers} layers"
    findings = [f"keeps {result.kept} of {result.sites} indexers{layers}"]
    findings += [speed.words for speed in speeds]
    if heldout is not None:
        findings.append(
            f"held-out loss {increase(heldout.plan, plan.search.confidence)}{_perplexity(heldout.plan)}"
        )
    elif result.kept < result.sites:
        findings.append(f"loss {increase(result, plan.search.confidence)} in sample{_perplexity(result)}")
        missing.append(f"held-out loss at this budget (`indexcache eval {name}`)")
    if probes is not None:
        findings.append(_probes(probes.all) + _worst_kind(probes))
    elif result.kept < result.sites:
        missing.append(f"probes at this budget (`indexcache eval {name} --probes`)")
    if not speeds and result.kept < result.sites:
        missing.append(f"speed (`indexcache bench {name}`)")
    return Verdict(tuple(findings), tuple(missing))


def _perplexity(measured: MeasuredPattern) -> str:
    if abs(measured.delta) > _LARGEST_EXPONENT:
        return ""
    return f", perplexity {round(100 * math.expm1(measured.delta), 1) + 0.0:+.1f} %"


def _probes(scores: ProbeRecord) -> str:
    """What became of probes: worse, better or unchanged as far as the interval tells."""
    before, after = (f"{100 * score.accuracy:.0f} %" for score in (scores.full, scores.plan))
    if scores.low is not None and scores.low > 0:
        return f"probes worse: {after} of answer tokens right, all full {before}"
    if scores.high is not None and scores.high < 0:
        return f"probes better: {after} of answer tokens right, all full {before}"
    if before == after:
        return f"probes unchanged at {after} of answer tokens right"
    return f"probes not surely changed: {after} of answer tokens right, all full {before}"


def _worst_kind(probes: ProbesRecord) -> str:
    """The kind of probes that lost most of its right answers, where the mean over all kinds hides it."""
    worst = max(probes.kinds, key=lambda scores: scores.full.accuracy - scores.plan.accuracy, default=probes.all)
    drops = [scores.full.accuracy - scores.plan.accuracy for scores in (worst, probes.all)]
    if drops[0] < _HIDDEN_DROP or drops[0] < 2 * drops[1]:
        return ""
    return f", {worst.kind} {100 * worst.plan.accuracy:.0f} % (all full {100 * worst.full.accuracy:.0f} %)"


class Headline(NamedTuple):
    """A figure to lead with: what it is of, the figure, its interval, and what it is in which unit."""

    name: str
    figure: str
    interval: str
    title: str
    unit: str

    @property
    def caption(self) -> str:
        """What stands under the figure."""
        if not self.unit:
            return self.title
        return f"{self.title}{';' if self.name == 'steps' else ','} {self.unit}"


def headlines(plan: Plan, heldout: HeldOutRecord | None, probes: ProbesRecord | None) -> list[Headline]:
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
    if probes is not None:
        uniform = signed(probes.all.uniform.loss - probes.all.full.loss)
        increases.append(
            ("probes", probes.all, "loss increase on probes", f"nats per answer token; uniform {uniform}")
        )
    lines = [_headline(plan, *line) for line in increases]
    if (decided := decided_steps(plan)) is not None:
        figure, title = f"{decided.count} of {decided.steps}", f"steps decided at {percent(decided.confidence)}"
        chance = least_chance(plan)
        lines.append(Headline("steps", figure, "", title, "" if chance is None else stay(chance)))
    return lines


def _headline(
    plan: Plan, name: str, measured: MeasuredPattern | ProbeRecord | None, title: str, unit: str
) -> Headline:
    figure, _, spread = increase(measured, plan.search.confidence).partition(" ")
    return Headline(name, *(("not measured", "") if measured is None else (figure, spread)), title, unit)
