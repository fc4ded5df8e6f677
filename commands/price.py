"""The price command: what a mix of requests takes under a plan and at its other budgets, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..errors import PlanError
from ..search.plan.cut import check_max_delta
from ..search.plan.schema import Plan
from ..search.price.decodes import DecodeRecord, decode_file, read_decodes
from ..search.price.prefills import PrefillRecord, prefill_file, read_prefills
from ..search.price.price import Pair, Price, Request, Times, cheapest, fit_document, prices, times_of
from ..search.report.words import signed
from ..system.console import new_console, print_line, print_table
from ..system.exits import print_result
from .traffic import requests_of

# Lengths of a mix that are listed one by one.
_FEW = 6


@dataclass(frozen=True)
class PriceList:
    """What a mix of requests takes.

    Args:
        plan: whose budgets are priced.
        requests: the mix.
        times: the curves through what was measured.
        prices: of every budget, all full first.
        max_delta: the limit on the loss increase; None for none.
        cheapest: of those within the limit; None without one.
        device: what the times were measured on.
        remarks: what to know of them, a line each.
    """

    plan: Plan
    requests: Sequence[Request]
    times: Times
    prices: Sequence[Price]
    max_delta: float | None
    cheapest: Price | None
    device: str
    remarks: Sequence[str]

    def of(self, kept: int) -> Price:
        """The price of ``kept`` full sites."""
        return next(price for price in self.prices if price.kept == kept)


def price(
    plan: Plan, path: Path, lengths: str, output: int, batch: int | None, max_delta: float | None
) -> PriceList:
    """Prices a mix of requests by what bench measured of the plan in the file ``path``.

    Args:
        plan: as read.
        path: of its file.
        lengths: the mix, or the file that it is in.
        output: tokens that are written for each request that does not say.
        batch: sequences of a decode step; None to choose.
        max_delta: what the loss of the cheapest budget may rise by; None to look for none.

    Raises:
        SettingError: no mix, or an impossible limit.
        PlanError: nothing was measured of this plan, or not of that batch.
    """
    check_max_delta(max_delta)
    requests = requests_of(lengths, output)
    pattern = plan.result.pattern
    prefills, decodes = read_prefills(prefill_file(path), pattern), read_decodes(decode_file(path), pattern)
    record = prefills or decodes
    if record is None:
        raise _not_measured(path, requests)
    times = times_of(plan, prefills, decodes, batch)
    if times.prefill is None and times.decode is None:  # nothing that was tried did fit
        raise _not_measured(path, requests)
    priced = prices(plan, times, requests)
    return PriceList(
        plan=plan,
        requests=requests,
        times=times,
        prices=priced,
        max_delta=max_delta,
        cheapest=None if max_delta is None else cheapest(plan, priced, max_delta),
        device=record.device,
        remarks=_remarks(path, times, prefills, decodes, requests),
    )


def _lengths(requests: Sequence[Request]) -> str:
    """Lengths to measure for a mix: its shortest and its longest, and one between."""
    tokens = sorted({request.length for request in requests})
    return ",".join(str(length) for length in sorted({tokens[0], tokens[len(tokens) // 2], tokens[-1]}))


def _not_measured(path: Path, requests: Sequence[Request]) -> PlanError:
    lengths = _lengths(requests)
    stands = [file for file in (prefill_file(path), decode_file(path)) if file.exists()]
    other = f"; {str(stands[0])!r} is of another pattern" if stands else ""
    return PlanError(
        f"nothing was timed of the plan {str(path)!r}{other}",
        hint=f"indexcache bench {path} --context {lengths} times prefills, and with --decode output tokens",
    )


def _remarks(
    path: Path,
    times: Times,
    prefills: PrefillRecord | None,
    decodes: DecodeRecord | None,
    requests: Sequence[Request],
) -> list[str]:
    lengths, remarks = _lengths(requests), []
    if times.prefill is None:
        remarks.append(f"prefill was not timed: indexcache bench {path} --context {lengths}")
    if times.decode is None:
        remarks.append(f"output tokens were not timed: indexcache bench {path} --decode --lengths {lengths}")
    if prefills is not None and decodes is not None and prefills.device != decodes.device:
        remarks.append(f"prefill was timed on {prefills.device}, output tokens on {decodes.device}")
    if decodes is not None and decodes.busy:
        remarks.append(f"while output tokens were timed, {decodes.busy}")
    shortest, longest = min(request.length for request in requests), max(request.length for request in requests)
    written = max(request.length + request.output for request in requests)
    for name, pair, end in (("prefill", times.prefill, longest), ("output tokens", times.decode, written)):
        if pair is not None and not pair.full.range[0] <= shortest <= end <= pair.full.range[1]:
            least, most = pair.full.range
            beyond = f"timed from {least:,} to {most:,} tokens" if least < most else f"timed at {most:,} only"
            remarks.append(f"{name}: {beyond}; what lies beyond is extrapolated")
    return remarks


def show(listed: PriceList, as_json: bool) -> None:
    """Prints the prices, on stdout."""
    if as_json:
        print_result(price_document(listed))
    else:
        price_table(listed)


def price_document(listed: PriceList) -> dict[str, Any]:
    """The price list as JSON; seconds, and tokens a second a GPU."""
    times = listed.times
    return {
        "model": listed.plan.model.id,
        "device": listed.device,
        "gpus": times.gpus,
        "batch": times.batch,
        "requests": [
            {"length": request.length, "share": request.share, "output_tokens": request.output}
            for request in listed.requests
        ],
        "all_full": _document(listed.of(times.sites)),
        "plan": _document(listed.of(times.kept)),
        "budgets": [_document(price) for price in listed.prices],
        "max_delta": listed.max_delta,
        "cheapest": listed.cheapest and _document(listed.cheapest),
        "prefill": fit_document(times.prefill),
        "decode": fit_document(times.decode),
        "remarks": list(listed.remarks),
    }


def _document(price: Price) -> dict[str, Any]:
    return {
        "kept": price.kept,
        "pattern": None if price.loss is None else price.loss.pattern,
        "increase": 0.0 if price.loss is None else price.loss.delta,
        "first_token": price.first_token,
        "output_token": price.output_token,
        "tokens_a_second": price.tokens_a_second,
        "basis": price.basis,
    }


def price_table(listed: PriceList) -> None:
    """Prints the prices of all full, the plan and the cheapest, and what they come from, on stdout."""
    console, times = new_console(), listed.times
    print_line(console, f"{_mix(listed.requests)}; {listed.plan.model.id} on {listed.device}")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    batch = f" (batch {times.batch})" if times.decode is not None else ""
    speed = "tokens/s a GPU" if "cuda" in listed.device else "tokens/s"
    table.add_column("")
    for name in (
        "kept",
        "first token, s",
        f"output token{batch}, ms",
        speed,
        "loss increase",
        "seconds",
    ):
        table.add_column(name, justify="right")
    full = listed.of(times.sites)
    rows = {"all full": full, "this plan": listed.of(times.kept)}
    if listed.cheapest is not None:
        rows["cheapest"] = listed.cheapest
    for name, price in rows.items():
        table.add_row(name, *_cells(price, full))
    print_table(console, table)
    for line in (*_sources(listed), *listed.remarks):
        print_line(console, line)


def _mix(requests: Sequence[Request]) -> str:
    outputs = sorted({request.output for request in requests})
    written = f"{outputs[0]:,}" if len(outputs) == 1 else f"{outputs[0]:,} to {outputs[-1]:,}"
    if len(requests) > _FEW:
        lengths = sorted(request.length for request in requests)
        kinds = f"{len(requests)} lengths from {lengths[0]:,} to {lengths[-1]:,} tokens"
    else:
        kinds = ", ".join(f"{request.share:.0%} of {request.length:,}" for request in requests) + " tokens"
    return f"requests: {kinds}, {written} output tokens each"


def _cells(price: Price, full: Price) -> tuple[str, ...]:
    return (
        str(price.kept),
        _figure(price.first_token, full.first_token, 1),
        _figure(price.output_token, full.output_token, 1000),
        _figure(price.tokens_a_second, None, 1),
        "" if price.loss is None else signed(price.loss.delta),
        price.basis,
    )


def _figure(value: float | None, full: float | None, unit: float) -> str:
    """A figure to three digits, and how many times all full's it goes into."""
    if value is None:
        return "not timed"
    figure = f"{unit * value:,.3g}" if unit * value < 1000 else f"{unit * value:,.0f}"
    return figure if full is None or value == full else f"{figure} ({full / value:.2f}x)"


def _sources(listed: PriceList) -> list[str]:
    """Where the seconds come from, and from which length on sharing pays."""
    times = listed.times
    lines = [
        f"{name:<8} {_curve(pair, form)}; sharing pays {_from(pair)}"
        for name, pair, form in (
            ("prefill", times.prefill, "a L + b L^2"),
            ("decode", times.decode, "a + b L"),
        )
        if pair is not None
    ]
    if listed.cheapest is not None:
        lines.append(
            f"cheapest within a loss increase of {listed.max_delta:g}: {listed.cheapest.kept} of {times.sites} "
            + ("kept" if listed.cheapest.kept in (times.kept, times.sites) else "kept, modelled by the two timed")
        )
    lines.append("no request waits for another in these figures")
    return lines


def _curve(pair: Pair, form: str) -> str:
    points = sorted(pair.full.points)
    if len(points) == 1:
        return f"timed at {points[0]:,} tokens"
    error = max(pair.full.error, pair.plan.error)
    return f"timed at {len(points)} lengths, {form} between them (off by {error:.0%} at most)"


def _from(pair: Pair) -> str:
    length = pair.pays_from
    if length is None:
        return "at no length"
    least, most = pair.full.range
    if length < least:
        return f"from the shortest length timed on, {least:,} tokens"
    return f"from {length:,.0f} tokens on" + ("" if length <= most else " (extrapolated)")
