"""What check prints: the verdict, and how far answers are from each known pattern; as a table or as JSON."""

from __future__ import annotations

from typing import Any

import rich.table
from rich import box

from ..search.export.engines import ENGINES
from ..system.console import new_console, print_line, print_table
from ..system.exits import print_result
from .check import CheckOutcome


def show(outcome: CheckOutcome, as_json: bool) -> None:
    """Prints what a server runs, on stdout."""
    if as_json:
        print_result(check_document(outcome))
        return
    console, evidence = new_console(), outcome.verdict.evidence
    print_line(console, f"{outcome.url}: {outcome.served.model}{_engine(outcome)}")
    print_line(console, f"{outcome.sentence} ({evidence.requests} answers, {_noise(outcome)})")
    print_table(console, _table(outcome))
    for pattern in outcome.fingerprint.alike:
        print_line(console, f"no prefix tells the plan from {pattern.name}, {pattern.layers}")


def _engine(outcome: CheckOutcome) -> str:
    served = outcome.served
    if served.engine is None:
        return ""
    return ", ".join(["", " ".join(filter(None, (ENGINES[served.engine].title, served.version)))])


def _noise(outcome: CheckOutcome) -> str:
    return f"the nearest pattern {outcome.verdict.evidence.deviations:.1f} spreads away"


def _table(outcome: CheckOutcome) -> rich.table.Table:
    evidence = outcome.verdict.evidence
    table = rich.table.Table(box=box.SIMPLE_HEAD)
    table.add_column("pattern", no_wrap=True)
    table.add_column("nats away", justify="right", no_wrap=True)
    table.add_column("log likelihood", justify="right", no_wrap=True)
    for name in _shown(outcome):
        table.add_row(name, f"{evidence.errors[name]:.4f}", f"{evidence.log_ratios[name]:+.1f}")
    table.add_row("none of these", "", f"{evidence.none_log_ratio:+.1f}")
    return table


def _shown(outcome: CheckOutcome) -> list[str]:
    """Patterns by name; of those one swap away from the plan, which are many, the likeliest."""
    ratios, patterns = outcome.verdict.evidence.log_ratios, outcome.fingerprint.patterns
    near = [pattern.name for pattern in patterns if pattern.near]
    likeliest = max(near, key=lambda name: ratios[name], default=None)
    return [pattern.name for pattern in patterns if not pattern.near or pattern.name == likeliest]


def check_document(outcome: CheckOutcome) -> dict[str, Any]:
    """What a server runs, as JSON."""
    verdict, served, manner = outcome.verdict, outcome.served, outcome.manner
    evidence = verdict.evidence
    return {
        "verdict": verdict.kind,
        "sentence": outcome.sentence,
        "advice": outcome.advice,
        "url": outcome.url,
        "model": served.model,
        "engine": served.engine,
        "engine_version": served.version,
        "asked_by": "token ids" if manner.by_ids else "text",
        "requests": outcome.asked,
        "answers": evidence.requests,
        "pattern": verdict.pattern,
        "patterns": [
            {
                "name": pattern.name,
                "layers": pattern.layers,
                "near": pattern.near,
                "mean_error": evidence.errors[pattern.name],
                "log_ratio": evidence.log_ratios[pattern.name],
            }
            for pattern in outcome.fingerprint.patterns
        ],
        "none_log_ratio": evidence.none_log_ratio,
        "noise": evidence.noise,
        "deviations": evidence.deviations,
        "unknown_tokens": evidence.unknown,
        "not_told_apart": [pattern.model_dump() for pattern in outcome.fingerprint.alike],
        "passed": verdict.kind == "plan",
    }
