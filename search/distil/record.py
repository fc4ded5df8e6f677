"""The plan of a checkpoint whose indexers were distilled: its source's search, and what was measured since."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...pattern import Pattern
from ..gate import Gate
from ..plan.file import check_plan
from ..plan.record import measured_pattern
from ..plan.schema import (
    CurvePoint,
    DistilledLosses,
    DistilledRecord,
    DistilledSegment,
    HeldOutRecord,
    ModelIdentity,
    Plan,
    Result,
    RunIdentity,
)
from .findings import DistilledFindings, DistilledPair


@dataclass(frozen=True)
class Training:
    """How indexers were trained.

    Args:
        dataset: whose text they learned from.
        windows: how many of it, of the plan's length.
        steps: of each indexer.
        windows_a_step: in each step.
        rows: queries of each window.
        seed: of the choice of rows and of the windows' order.
        learning_rate: asked for; None where each indexer's was probed.
        rates: of each trained site, the learning rate that was used.
        curves: of each trained site, (step, KL of attention in nats).
    """

    dataset: str
    windows: int
    steps: int
    windows_a_step: int
    rows: int
    seed: int
    learning_rate: float | None
    rates: Mapping[int, float]
    curves: Mapping[int, Sequence[tuple[int, float]]]


def distilled_plan(
    source: Plan,
    model: ModelIdentity,
    run: RunIdentity,
    pattern: Pattern,
    training: Training,
    findings: DistilledFindings,
    confidence: float,
    tokens_file: str,
) -> Plan:
    """The plan of ``model``, whose indexers were distilled for ``pattern`` from those of ``source``.

    Its search is the source's. What is measured of the pattern is measured with the distilled indexers, beside the
    source all full. Probes are not measured again, and so are not there.

    Args:
        source: the plan of the checkpoint as it was.
        model: the checkpoint as it was written.
        run: how the model ran.
        pattern: over the sites.
        training: how the indexers were trained.
        findings: what was measured.
        confidence: of intervals.
        tokens_file: name of the file of its tokens.

    Raises:
        PlanError: the parts do not agree.
    """
    heldout, calibration = (_losses(pair, confidence) for pair in (findings.heldout, findings.calibration))
    record = DistilledRecord(
        source=source.model.id,
        source_revision=source.model.revision,
        source_weights_sha256=source.model.weights_sha256,
        source_plan_sha256=hashlib.sha256(source.as_json().encode()).hexdigest(),
        dataset=training.dataset,
        windows=training.windows,
        tokens=training.windows * source.tokens.window,
        steps=training.steps,
        windows_a_step=training.windows_a_step,
        rows=training.rows,
        seed=training.seed,
        learning_rate=training.learning_rate,
        segments=_segments(source, pattern, training, findings),
        calibration=calibration,
        heldout=heldout,
    )
    uniform = measured_pattern(findings.uniform, findings.heldout.full, confidence)
    changed: dict[str, object] = {
        "model": model,
        "run": run,
        "probes": None,
        "distilled": record,
        "complete": True,
    }
    changed["heldout"] = HeldOutRecord(baseline_loss=heldout.baseline_loss, plan=heldout.after, uniform=uniform)
    changed["tokens"] = source.tokens.model_copy(update={"file": tokens_file})
    changed["result"] = _result(source, pattern, calibration)
    plan = source.model_copy(update=changed)
    if str(pattern) != source.result.pattern:
        plan = plan.model_copy(update={"search": source.search.model_copy(update={"kept_chances": []})})
    return check_plan(plan.model_dump(), "the plan of the distilled checkpoint")


def hold_distilled(plan: Plan, gate: Gate, max_delta: float | None) -> str | None:
    """Why a distilled plan does not pass, or None: its held-out loss did not fall, or is above a limit."""
    distilled = plan.distilled
    assert distilled is not None, "the plan is of a distilled checkpoint"
    before, after = distilled.heldout.before, distilled.heldout.after
    if after.delta >= before.delta:
        return (
            f"distilling did not lower the held-out loss: it increases by {after.delta:+.5f} over all full, "
            f"and by {before.delta:+.5f} before"
        )
    if max_delta is not None and not gate.passes(after, max_delta):
        return gate.failure(after, max_delta, "--max-delta", "the distilled plan's loss")
    return None


def _losses(pair: DistilledPair, confidence: float) -> DistilledLosses:
    return DistilledLosses(
        baseline_loss=pair.full.loss,
        before=measured_pattern(pair.before, pair.full, confidence),
        after=measured_pattern(pair.after, pair.full, confidence),
    )


def _segments(
    source: Plan, pattern: Pattern, training: Training, findings: DistilledFindings
) -> list[DistilledSegment]:
    """One a full site; those that serve themselves alone were not trained."""
    layers, trials = source.model.site_layers, {trial.site: trial for trial in findings.trials}
    ends = dict(pattern.serving)
    return [
        DistilledSegment(
            layer=layers[site],
            last_layer=layers[ends.get(site, site + 1) - 1],
            written=site in findings.written,
            learning_rate=training.rates.get(site),
            curve=[CurvePoint(step=step, divergence=max(0.0, kl)) for step, kl in training.curves.get(site, ())],
            divergence_before=trials[site].before if site in trials else None,
            divergence_after=trials[site].after if site in trials else None,
        )
        for site in pattern.full
    ]


def _result(source: Plan, pattern: Pattern, calibration: DistilledLosses) -> Result:
    model, sites = source.model, len(source.model.site_layers)
    same = pattern.kept == source.result.kept
    spread = next((uniform for uniform in source.search.uniform if uniform.kept == pattern.kept), None)
    return Result(
        **calibration.after.model_dump(),
        keep=source.result.keep if same else pattern.kept / sites,
        max_delta=source.result.max_delta if same else None,
        sites=sites,
        layers=model.layers,
        layer_pattern=pattern.over_layers(model.site_layers, model.layers, model.shared_layers),
        uniform=source.result.uniform if same else spread,
    )
