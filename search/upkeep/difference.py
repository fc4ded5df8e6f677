"""Two plans side by side: roles that changed, what each budget costs in both, and whether that is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from ...errors import PlanError
from ...evaluate import CALIBRATION, HELD_OUT
from ...pattern import layer_ranges
from ..intervals import CONFIDENCE, interval
from ..plan.cut import measured_patterns
from ..plan.schema import MeasuredPattern, Plan

Verdict = Literal["same", "decided: lower", "decided: higher", "noise", "not known"]


@dataclass(frozen=True)
class WindowIncreases:
    """By how much two patterns are dearer than all full, window by window on the same windows, nats per label.

    Args:
        old: of one plan's pattern on its own model.
        new: of the other's, on its own.
        documents: the document of each window.
    """

    old: Sequence[float]
    new: Sequence[float]
    documents: Sequence[int]


FindIncreases = Callable[[str, str, str], WindowIncreases | None]
"""Losses by window of a group's old and new pattern, where both plans kept them for the same tokens."""


@dataclass(frozen=True)
class LossChange:
    """How a loss increase over all full differs between two plans, in nats per label.

    Args:
        old: as one plan has it.
        new: as the other has it.
        low: lower end of the interval of new less old; None where one document gives none.
        high: upper end.
        is_paired: whether the difference was taken window by window.
    """

    old: MeasuredPattern
    new: MeasuredPattern
    low: float | None
    high: float | None
    is_paired: bool

    @property
    def delta(self) -> float:
        """New less old."""
        return self.new.delta - self.old.delta

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves out zero, and on which side."""
        if self.low is None or self.high is None:
            return "not known"
        if self.low == self.high == 0:
            return "same"
        if self.low > 0:
            return "decided: higher"
        return "decided: lower" if self.high < 0 else "noise"


def loss_change(
    old: MeasuredPattern, new: MeasuredPattern, increases: WindowIncreases | None, confidence: float
) -> LossChange:
    """The difference of two loss increases with its interval, paired where ``increases`` are known.

    Otherwise the two are taken as independent and their intervals are combined (MOVER; Zou and Donner, 2008): with
    ``d`` the difference, ``o`` and ``n`` the increases and ``l``, ``u`` their ends, it reaches from
    ``d - sqrt((n - l_n)^2 + (u_o - o)^2)`` to ``d + sqrt((u_n - n)^2 + (o - l_o)^2)``. On the same tokens the two
    rise and fall together, so that this is wider than it need be.
    """
    if increases is not None:
        differences = [after - before for after, before in zip(increases.new, increases.old, strict=True)]
        ends = interval(differences, increases.documents, confidence)
        low, high = (None if math.isinf(end) else end for end in (ends.low, ends.high))
        return LossChange(old, new, low, high, is_paired=True)
    of_old, of_new = _ends(old, confidence), _ends(new, confidence)
    if of_old is None or of_new is None:
        return LossChange(old, new, None, None, is_paired=False)
    delta = new.delta - old.delta
    below = math.hypot(new.delta - of_new[0], of_old[1] - old.delta)
    above = math.hypot(of_new[1] - new.delta, old.delta - of_old[0])
    return LossChange(old, new, delta - below, delta + above, is_paired=False)


def at_confidence(plan: Plan, measured: MeasuredPattern, confidence: float) -> MeasuredPattern:
    """A pattern of ``plan``, without the interval that it has at another ``confidence``: its error gives one."""
    if plan.search.confidence == confidence:
        return measured
    return measured.model_copy(update={"low": None, "high": None})


def _ends(measured: MeasuredPattern, confidence: float) -> tuple[float, float] | None:
    """The ends of an increase's interval; of a plan that has none, by its standard error; None without that."""
    if measured.low is not None and measured.high is not None:
        return measured.low, measured.high
    if measured.standard_error is None:
        return None
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * measured.standard_error
    return measured.delta - reach, measured.delta + reach


@dataclass(frozen=True)
class PlanDifference:
    """What differs between two plans for models with the same sites.

    Args:
        old: one plan.
        new: the other.
        changed_layers: whose role is another, at the budgets that were picked.
        budgets: the numbers of full sites that both measured, on calibration windows, by which the patterns were
            chosen.
        heldout: the patterns picked, on held-out windows; None where one of the plans was not checked so.
        fields: what else differs, by name: the old value and the new one.
    """

    old: Plan
    new: Plan
    changed_layers: tuple[int, ...]
    budgets: tuple[LossChange, ...]
    heldout: LossChange | None
    fields: dict[str, tuple[str, str]]


def plan_difference(old: Plan, new: Plan, find: FindIncreases = lambda group, old, new: None) -> PlanDifference:
    """Compares two plans; nothing is measured.

    Args:
        old: one plan.
        new: the other.
        find: gives losses by window, where both plans kept them for the same tokens.

    Raises:
        PlanError: they are for models whose sites are in other layers.
    """
    sites, others = old.model.site_layers, new.model.site_layers
    if (sites, old.model.layers) != (others, new.model.layers):
        raise PlanError(
            f"the plans are for models of other sites: {len(sites)} of {old.model.layers} layers, "
            f"{len(others)} of {new.model.layers}",
            hint="compare plans for checkpoints of one architecture",
        )
    confidence = new.search.confidence or old.search.confidence or CONFIDENCE

    def change(group: str, before: MeasuredPattern, after: MeasuredPattern) -> LossChange:
        increases = find(group, before.pattern, after.pattern)
        return loss_change(at_confidence(old, before, confidence), after, increases, confidence)

    of_old, of_new = measured_patterns(old), measured_patterns(new)
    both = sorted((of_old.keys() & of_new.keys()) - {len(sites)}, reverse=True)
    roles = zip(sites, old.result.pattern, new.result.pattern, strict=True)
    heldout = None
    if old.heldout is not None and new.heldout is not None:
        heldout = change(HELD_OUT, old.heldout.plan, new.heldout.plan)
    return PlanDifference(
        old=old,
        new=new,
        changed_layers=tuple(layer for layer, before, after in roles if before != after),
        budgets=tuple(change(CALIBRATION, of_old[kept], of_new[kept]) for kept in both),
        heldout=heldout,
        fields=_differing(old, new),
    )


def _differing(old: Plan, new: Plan) -> dict[str, tuple[str, str]]:
    before, after = _described(old), _described(new)
    names = dict.fromkeys((*before, *after))
    pairs = {name: (before.get(name, "none"), after.get(name, "none")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _described(plan: Plan) -> dict[str, str]:
    """What the losses and the choice of a plan depend on, in words."""
    model, tokens, run, search, result = plan.model, plan.tokens, plan.run, plan.search, plan.result
    asked = f"keep {result.keep:g}" if result.keep is not None else f"max-delta {result.max_delta:g}"
    described = {
        "model": model.id,
        "revision": model.revision or "none",
        "weights": model.weights_sha256[:12],
        "config": model.config_sha256[:12],
        "code": (model.code_sha256 or "transformers'")[:13],
        "text": ", ".join(part for part in (tokens.dataset, tokens.subset, tokens.split, tokens.revision) if part),
        "tokens": tokens.sha256[:12],
        "window": str(tokens.window),
        "windows": str(search.windows or tokens.windows),
        "held-out windows": str(tokens.heldout_windows),
        "dtype": run.dtype,
        "device": run.device,
        "indexer": run.indexer,
        "attention": run.attention,
        "quantised weights": run.weights or "none",
        "goal": asked,
        "objective": search.objective,
        "strategy": search.strategy,
        "confidence": "none" if search.confidence is None else f"{search.confidence:g}",
        "pinned layers": layer_ranges(search.pinned_layers) or "none",
        "distilled": "no" if plan.distilled is None else "yes",
        "indexcache": plan.indexcache,
    }
    return described | {name: run.versions[name] for name in ("torch", "transformers") if name in run.versions}
