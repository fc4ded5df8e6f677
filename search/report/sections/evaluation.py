"""What eval measured of a plan, as the report shows it: on the plan's own windows, on others, and on probes."""

from __future__ import annotations

from dataclasses import dataclass

from ....evaluate import CALIBRATION, GROUP_TITLES, HELD_OUT
from ..checks import Check, CheckRecord, Measurement, ProbesCheck, UnseenCheck
from ..tables import Column, Row, Table, probes_table
from ..words import at_confidence, increase, signed


@dataclass(frozen=True)
class Section:
    """A sentence and the table that it explains, and of which text that is where it is not the plan's own."""

    sentence: str
    table: Table
    text: str = ""


def checks_again(checks: CheckRecord | None, window: int) -> list[Section]:
    """The checks on the plan's own windows and probes, of ``window`` tokens; none where eval measured none."""
    if checks is None:
        return []
    by_group = {group: getattr(checks, group) for group in (HELD_OUT, CALIBRATION)}
    rows = [
        Row((f"{check.windows} {GROUP_TITLES[group]}", *_losses(check)))
        for group, check in by_group.items()
        if check is not None
    ]
    columns = [Column("windows", names=True), *_COLUMNS]
    sentence = "`indexcache eval` measured this plan again on its frozen tokens; losses in nats per token."
    sections = [Section(sentence, Table.of(columns, rows))] if rows else []
    return sections + ([_probes(checks.probes, window)] if checks.probes else [])


def checks_elsewhere(checks: CheckRecord | None) -> list[Section]:
    """The checks on other windows, and on probes in them; none where eval measured none."""
    if checks is None or not checks.others:
        return []
    rows = [
        Row((f"{check.windows} of {check.length:,} tokens", _text(check), *_losses(check)))
        for check in checks.others
    ]
    columns = [Column("windows", names=True), Column("text", names=True), *_COLUMNS]
    sentence = (
        "`indexcache eval` measured this plan on windows of other lengths or texts, of documents that its search "
        "has not seen; losses in nats per token."
    )
    probes = [_probes(check.probes, check.length, _text(check)) for check in checks.others if check.probes]
    return [Section(sentence, Table.of(columns, rows)), *probes]


def budget_table(checks: CheckRecord | None) -> Table | None:
    """Every budget on held-out windows beside uniform; None where eval did not measure them."""
    if checks is None or checks.curve is None:
        return None
    curve = checks.curve
    at = at_confidence(curve.losses.searched, curve.confidence)
    columns = [
        Column("kept"),
        Column(f"this plan{at}"),
        Column("key tokens", detail=True),
        Column("dp", detail=True),
        Column(f"uniform{at}"),
    ]
    by_dp = {measured.kept: signed(measured.delta) for measured in curve.losses.dp}
    rows = [
        Row(
            (
                str(searched.kept),
                increase(searched),
                "" if searched.key_delta is None else signed(searched.key_delta),
                by_dp.get(searched.kept, ""),
                increase(uniform),
            ),
            searched.pattern == checks.pattern,
        )
        for searched, uniform in zip(curve.losses.searched, curve.losses.uniform, strict=True)
    ]
    return Table.of(columns, rows)


def positions(checks: CheckRecord | None) -> Section | None:
    """The loss increase by position in the window; None where eval did not measure it."""
    if checks is None or checks.curve is None or not checks.curve.positions:
        return None
    parts, confidence = checks.curve.positions, checks.curve.confidence
    at = at_confidence([part.losses.plan for part in parts], confidence)
    columns = [Column("positions", names=True), Column(f"this plan{at}"), Column(f"uniform{at}")]
    rows = [
        Row((f"{part.first:,} to {part.last:,}", increase(part.losses.plan), increase(part.losses.uniform)))
        for part in parts
    ]
    sentence = (
        "The increase on held-out windows, of the tokens that are predicted at these positions alone. "
        "Earlier ones see no more keys than are selected, so that no pattern differs there. "
        "An increase that grows along the window says that longer windows would show more."
    )
    return Section(sentence, Table.of(columns, rows))


_COLUMNS = (
    Column("all full", detail=True),
    Column("this plan", detail=True),
    Column("increase"),
    Column("uniform", detail=True),
    Column("allowed"),
    Column("when, on what", names=True),
)


def _losses(check: Check) -> tuple[str, ...]:
    losses = check.losses
    return (
        f"{losses.baseline_loss:.4f}",
        f"{losses.plan.loss:.4f}",
        increase(losses.plan, check.confidence),
        increase(losses.uniform, check.confidence),
        "" if check.max_delta is None else f"{check.max_delta:g}, {_verdict(check)}",
        f"{check.when}, {check.dtype} on {check.device}",
    )


def _verdict(check: Measurement) -> str:
    held = ", by the estimate" if check.gate == "estimate" else ""
    return f"{'passed' if check.passed else 'failed'}{held}"


def _text(check: UnseenCheck) -> str:
    return ", ".join(part for part in (check.dataset, check.subset, check.split) if part)


def _probes(check: ProbesCheck, tokens: int, text: str = "") -> Section:
    limit = check.max_probe_delta
    verdict = "" if limit is None else f" On all of them {limit:g} was allowed: {_verdict(check)}."
    return Section(f"Probes of {tokens:,} tokens.{verdict}", probes_table(check.scores, check.confidence), text)
