"""What a mix of requests takes under a plan's budgets: seconds to the first token and for an output token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import PlanError
from ..plan.cut import gate_of, measured_patterns
from ..plan.schema import MeasuredPattern, Plan
from .decodes import DecodeRecord
from .fit import EXTRAPOLATED, FITTED, MEASURED, Fit, fit, pays_from
from .prefills import PrefillRecord

# Attention to a fixed number of keys, and all else, grow with the length; an indexer's scores with its square.
_PREFILL_POWERS = (1, 2)
# Of one step, weights are read whatever the length is, and index keys with it.
_DECODE_POWERS = (0, 1)
MODELLED = "modelled"
_SURENESS = (MEASURED, FITTED, MODELLED, EXTRAPOLATED)


@dataclass(frozen=True)
class Request:
    """Requests of one kind.

    Args:
        length: tokens of the prompt.
        share: of all requests; those of a mix sum to 1.
        output: tokens that are written.
    """

    length: int
    share: float
    output: int


@dataclass(frozen=True)
class Pair:
    """Times all full and under the plan, over the length."""

    full: Fit
    plan: Fit

    @property
    def pays_from(self) -> float | None:
        """The length from which on the plan is faster; see ``fit.pays_from``."""
        return pays_from(self.full, self.plan)


@dataclass(frozen=True)
class Times:
    """What was measured of a plan on one machine.

    Args:
        prefill: of one prompt; None where it was not measured.
        decode: of one step of ``batch`` sequences; None likewise.
        batch: sequences of a step.
        gpus: that the times are of; 1 for a CPU.
        kept: full sites of the plan.
        sites: of the model.
    """

    prefill: Pair | None
    decode: Pair | None
    batch: int
    gpus: int
    kept: int
    sites: int


@dataclass(frozen=True)
class Price:
    """What a mix of requests takes under a pattern with ``kept`` full sites.

    Args:
        kept: full sites.
        first_token: mean seconds of a prefill, without any waiting for others; None where not measured.
        output_token: mean seconds of a step over all output tokens; None likewise.
        tokens_a_second: output tokens a second and GPU, if each request has it to itself while it is prefilled and
            shares it with a batch while it decodes; None unless both were measured on one machine.
        basis: the least sure of what the seconds come from: measured, fitted, modelled or extrapolated.
        loss: what is known of the pattern's loss; None for all full.
    """

    kept: int
    first_token: float | None
    output_token: float | None
    tokens_a_second: float | None
    basis: str
    loss: MeasuredPattern | None

    @property
    def cost(self) -> float:
        """What is to be low: GPU time for a token, else the seconds that are known."""
        if self.tokens_a_second is not None:
            return 1 / self.tokens_a_second
        return (self.first_token or 0.0) + (self.output_token or 0.0)


def times_of(plan: Plan, prefills: PrefillRecord | None, decodes: DecodeRecord | None, batch: int | None) -> Times:
    """The curves through what bench measured.

    Args:
        plan: that was measured.
        prefills: what bench left beside it; None if nothing.
        decodes: what bench --decode did; None likewise.
        batch: sequences of a decode step, of those measured; None for the one measured at most lengths.

    Raises:
        PlanError: the batch was not measured.
    """
    step_pair, batch = (None, 1) if decodes is None else _decode_pair(decodes, batch)
    record = decodes or prefills
    return Times(
        prefill=None if prefills is None else _prefill_pair(prefills),
        decode=step_pair,
        batch=batch,
        gpus=_gpus("" if record is None else record.device),
        kept=plan.result.kept,
        sites=plan.result.sites,
    )


def _gpus(device: str) -> int:
    """How many GPUs a record's ``device`` names: ``2 x cuda: ...`` is two."""
    return sum(
        int(count) if (count := part.partition(" x ")[0].strip()).isdecimal() else 1 for part in device.split(", ")
    )


def _prefill_pair(record: PrefillRecord) -> Pair | None:
    points = [
        (point.context, point.all_full.seconds, point.plan.seconds)
        for point in record.points
        if point.all_full and point.plan
    ]
    return _pair(points, _PREFILL_POWERS)


def _decode_pair(record: DecodeRecord, batch: int | None) -> tuple[Pair | None, int]:
    points: dict[int, list[tuple[int, float, float]]] = {}
    for point in record.points:
        if point.all_full and point.plan:
            times = point.context, point.all_full.seconds, point.plan.seconds
            points.setdefault(point.batch, []).append(times)
    if not points:
        return None, 1
    if batch is None:
        batch = max(points, key=lambda size: (len(points[size]), size))
    if batch not in points:
        measured = ", ".join(map(str, sorted(points)))
        raise PlanError(
            f"a batch of {batch} was not measured, but {measured}", hint=f"run bench --decode with --batch {batch}"
        )
    return _pair(points[batch], _DECODE_POWERS), batch


def _pair(points: Sequence[tuple[int, float, float]], powers: Sequence[int]) -> Pair | None:
    if not points:
        return None
    full = {length: seconds for length, seconds, _ in points}
    plan = {length: seconds for length, _, seconds in points}
    return Pair(fit(full, powers), fit(plan, powers))


def prices(plan: Plan, times: Times, requests: Sequence[Request]) -> list[Price]:
    """Prices of all full and of every budget that the plan's search has a pattern of, the densest first.

    Between all full and the plan, seconds go with the number of layers that share, as all indexers are alike; that
    is a model, and so is going on beyond the plan.
    """
    # Distilled indexers fit the plan's pattern and no other.
    measured = measured_patterns(plan) if plan.distilled is None else {times.kept: plan.result}
    budgets: dict[int, MeasuredPattern | None] = {**measured, times.sites: None}
    return [_price(times, requests, kept, budgets[kept]) for kept in sorted(budgets, reverse=True)]


def cheapest(plan: Plan, priced: Sequence[Price], max_delta: float) -> Price:
    """The one of lowest cost whose loss increase passes the plan's own gate at ``max_delta``; all full passes."""
    gate = gate_of(plan)
    passing = [price for price in priced if price.loss is None or gate.passes(price.loss, max_delta)]
    return min(passing, key=lambda price: (price.cost, -price.kept))


def _price(times: Times, requests: Sequence[Request], kept: int, loss: MeasuredPattern | None) -> Price:
    prefill = [_seconds(times.prefill, times, kept, request.length) for request in requests]
    # Step by step the context grows: the mean step is in the middle, as the curve is a line.
    steps = [
        _seconds(times.decode, times, kept, request.length + (request.output + 1) / 2) for request in requests
    ]
    written = sum(request.share * request.output for request in requests)
    first = output = speed = None
    if times.prefill is not None:
        first = sum(request.share * seconds for request, (seconds, _) in zip(requests, prefill, strict=True))
    if times.decode is not None:
        pairs = zip(requests, steps, strict=True)
        output = sum(request.share * request.output * seconds for request, (seconds, _) in pairs) / written
    if first is not None and output is not None:
        speed = written / (first + written * output / times.batch) / times.gpus
    bases = [basis for _, basis in (*(prefill if times.prefill else ()), *(steps if times.decode else ()))]
    if kept not in (times.kept, times.sites):
        bases.append(MODELLED)
    return Price(kept, first, output, speed, max(bases, key=_SURENESS.index), loss)


def _seconds(pair: Pair | None, times: Times, kept: int, length: float) -> tuple[float, str]:
    """Seconds at ``length`` with ``kept`` full sites, and what they come from."""
    if pair is None:
        return 0.0, MEASURED
    full, plan = pair.full.at(length), pair.plan.at(length)
    if kept == times.sites:
        return full.seconds, full.basis
    part = (times.sites - kept) / (times.sites - times.kept) if times.kept < times.sites else 0.0
    return full.seconds + part * (plan.seconds - full.seconds), plan.basis


def fit_document(pair: Pair | None) -> dict[str, Any] | None:
    """A pair of curves as JSON."""
    if pair is None:
        return None
    sides: Mapping[str, Fit] = {"all_full": pair.full, "plan": pair.plan}
    return {
        "measured": sorted(pair.full.points),
        **{
            name: {"coefficients": list(curve.coefficients), "error": curve.error} for name, curve in sides.items()
        },
        "pays_from": pair.pays_from,
    }
