"""What search prints: a line a step, and the table that sums a plan up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..pattern import Pattern, layer_ranges
from ..search.plan.schema import Plan, ProbesRecord
from ..search.report.pages import shorter_window
from ..search.report.timing import Timing
from ..search.search import SearchProgress
from ..search.strategies.greedy import Step
from ..search.strategies.refine import Swap
from ..system.console import Reporter, new_console, print_line, print_table
from .job.loss_table import loss_table


def silent_progress(follow: Callable[[Pattern], None]) -> SearchProgress:
    """Says nothing; ``follow`` is told of each pattern that is in force from then on."""
    return SearchProgress(step=lambda step: follow(step.pattern))


def spoken_progress(
    layers: Sequence[int], removals: int, reporter: Reporter, follow: Callable[[Pattern], None]
) -> SearchProgress:
    """Says what each step removed, and what each swap changed.

    Args:
        layers: of the sites.
        removals: how many there will be.
        reporter: where it is said.
        follow: told of each pattern that is in force from then on.
    """
    began = time.monotonic()

    def step(step: Step) -> None:
        number = len(layers) - step.pattern.kept
        doubt = f", not told from {len(step.undecided)} more" if step.undecided else ""
        divergence = step.evaluation.mean("divergence")
        expected = "" if divergence is None else f", KL {divergence:.4f}"
        reporter.say(
            f"step {number}/{removals}: dropped layer {layers[step.removed]}, loss {step.evaluation.loss:.4f}"
            f"{expected}{doubt}, {time.monotonic() - began:.0f} s"
        )
        follow(step.pattern)

    def swap(swap: Swap) -> None:
        reporter.say(
            f"refined: layer {layers[swap.restored]} full instead of {layers[swap.removed]}, "
            f"cost {swap.evaluation.cost:.5f}"
        )

    return SearchProgress(step, swap)


def search_summary(plan: Plan, folder: Path, timing: Timing) -> None:
    """Prints what a search found, on stderr."""
    result, tokens = plan.result, plan.tokens
    held = plan.heldout
    by_dp = next((pattern for pattern in plan.search.dp if pattern.kept == result.kept), None)
    rows = {"this plan": result, "dp": by_dp, "uniform": result.uniform}
    patterns = {name: pattern for name, pattern in rows.items() if pattern is not None}
    heldout = None if held is None else {"this plan": held.plan, "dp": held.dp, "uniform": held.uniform}
    table = loss_table(result.sites, plan.search.baseline_loss, patterns, heldout)
    console = new_console(stderr=True)
    print_line(
        console,
        f"{plan.model.id}: {result.kept} of {result.sites} indexers kept, in {result.layers} layers; "
        "losses in nats per token",
    )
    print_table(console, table)
    print_line(console, f"pattern  {result.layer_pattern}")
    if plan.search.pinned_layers:
        print_line(console, f"pinned   layers {layer_ranges(plan.search.pinned_layers)}, in uniform too")
    if plan.search.steps:
        print_line(console, f"steps    {decided_steps(plan)}")
    if plan.probes is not None:
        print_line(console, f"probes   {probes_line(plan.probes)}")
    print_line(
        console,
        f"{tokens.windows} calibration and {tokens.heldout_windows} held-out windows of {tokens.window} tokens; "
        f"{timing.seconds:.0f} s" + (f" in {timing.sittings} sessions" if timing.sittings > 1 else ""),
    )
    if line := shorter_window(plan):
        print_line(console, f"length   {line}")
    cost = plan.cost
    print_line(
        console,
        f"{cost.search_layer_windows} layer-windows to choose, {cost.fewer:.1f} times fewer than Algorithm 1",
    )
    print_line(console, f"report   {folder / 'report.html'}")


def decided_steps(plan: Plan) -> str:
    """How many steps these windows decide, e.g. ``9 of 12 decided at 95 %``."""
    steps = plan.search.steps
    decided = sum(step.undecided_layers == [] for step in steps)
    confidence = plan.search.confidence or 0.0
    return f"{decided} of {len(steps)} decided at {100 * confidence:g} %"


def probes_line(probes: ProbesRecord) -> str:
    """What the plan costs on probes beside uniform, and how many answers are right."""
    both = probes.all
    uniform = both.uniform.loss - both.full.loss
    accuracy = ", ".join(
        f"{name} {100 * scores.accuracy:.0f} %"
        for name, scores in (("all full", both.full), ("plan", both.plan), ("uniform", both.uniform))
    )
    return f"{both.delta:+.3f} nats an answer token (uniform {uniform:+.3f}); right: {accuracy}"
