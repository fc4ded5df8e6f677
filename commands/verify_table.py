"""What verify prints: the old plan's loss on the new checkpoint, how it moved, and the verdict; or as JSON."""

from __future__ import annotations

from typing import Any

from ..search.report.words import at_confidence, increase, signed
from ..system.console import duration, new_console, print_line, print_table
from ..system.exits import print_result
from ..system.launching import speaks
from .diff import change_document, difference_words
from .job.loss_table import loss_table
from .verify import VerifyOutcome


def show(outcome: VerifyOutcome, as_json: bool) -> None:
    """Prints how an old plan does on a new checkpoint, on stdout."""
    if speaks():
        if as_json:
            print_result(verify_document(outcome))
        else:
            _print_table(outcome)


def _print_table(outcome: VerifyOutcome) -> None:
    patterns = {"the old plan": outcome.losses.plan} | {rival.name: rival.pattern for rival in outcome.rivals}
    confidence, drift = outcome.settings.asked.gate.confidence, outcome.drift
    console = new_console()
    print_line(console, f"{outcome.windows} held-out windows of {outcome.length} tokens on {outcome.model}")
    title = f"increase{at_confidence(patterns.values(), confidence)}"
    sites = len(outcome.plan.model.site_layers)
    print_table(console, loss_table(sites, outcome.losses.baseline_loss, patterns, title=title))
    if drift is None:
        print_line(console, "on other text than the plan's, so that its old increase is no measure")
    else:
        paired = ", window by window" if drift.is_paired else ""
        print_line(console, f"on its own checkpoint the plan's increase was {increase(drift.old)}")
        print_line(console, f"new less old{paired}: {difference_words(drift)}")
    print_line(console, cost(outcome))
    if outcome.reasons:
        print_line(console, "does not hold: search again")
    else:
        print_line(console, f"holds: {_held(outcome)}")


def _held(outcome: VerifyOutcome) -> str:
    """What was not shown, and how large it could still be."""
    limit, tolerance = outcome.settings.asked.max_delta, outcome.settings.tolerance
    held = [] if limit is None else [f"the increase is at most {limit:g}"]
    if outcome.drift is not None:
        most = outcome.drift.high
        perhaps = "" if most is None or most <= tolerance else f" (it may have, by up to {signed(most)})"
        held.append(f"it has not surely grown by more than {tolerance:g}{perhaps}")
    held.append(f"no other pattern measured is surely better by more than {tolerance:g}")
    return "; ".join(held)


def cost(outcome: VerifyOutcome) -> str:
    """What it took, beside the search that it may save."""
    search = outcome.plan.cost.window_evaluations
    share = f", {outcome.evaluations / search:.1%} of the {search:,} of the search" if search else ""
    return f"cost: {outcome.evaluations:,} window evaluations{share}; {duration(outcome.seconds)}"


def verify_document(outcome: VerifyOutcome) -> dict[str, Any]:
    """How an old plan does on a new checkpoint, as JSON."""
    asked, drift = outcome.settings.asked, outcome.drift
    return {
        "holds": not outcome.reasons,
        "reasons": outcome.reasons,
        "model": outcome.model,
        "dataset": None if asked.text is None else vars(asked.text.source),
        "window": outcome.length,
        "windows": outcome.windows,
        "baseline_loss": outcome.losses.baseline_loss,
        "plan": outcome.losses.plan.model_dump(),
        "drift": None if drift is None else change_document(drift),
        "rivals": [
            {
                "name": rival.name,
                "delta": rival.delta,
                "low": rival.low,
                "measured": rival.pattern.model_dump(),
            }
            for rival in outcome.rivals
        ],
        "confidence": asked.gate.confidence,
        "gate": asked.gate.kind,
        "max_delta": asked.max_delta,
        "tolerance": outcome.settings.tolerance,
        "window_evaluations": outcome.evaluations,
        "search_window_evaluations": outcome.plan.cost.window_evaluations,
        "seconds": round(outcome.seconds, 3),
    }
