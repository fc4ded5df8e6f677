"""What search prints: a line a step, and the table that sums a plan up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from ..pattern import Pattern
from ..search.plan.schema import Plan, ProbesRecord
from ..search.price.memory import IndexerSizes, spared_line
from ..search.report.certainty import decided_steps, least_chance, not_decided
from ..search.report.prose import calibration_windows, shorter_window
from ..search.report.tables import held_out, in_sample
from ..search.report.timing import Timing
from ..search.report.words import at_confidence, increase, layers, percent, stay
from ..search.search import SearchProgress
from ..search.strategies.greedy import Step
from ..search.strategies.refine import Swap
from ..system.console import Reporter, byte_count, new_console, print_line, print_table
from .job.loss_table import loss_table


def silent_progress(follow: Callable[[Pattern], None]) -> SearchProgress:
    """Says nothing; ``follow`` is told of each pattern that is in force from then on."""
    return SearchProgress(step=lambda step: follow(step.pattern))


def spoken_progress(
    site_layers: Sequence[int], removals: int, reporter: Reporter, follow: Callable[[Pattern], None]
) -> SearchProgress:
    """Says what each step removed, what each swap changed, and with ``--windows auto`` at which look.

    Args:
        site_layers: of the sites.
        removals: how many there will be.
        reporter: where it is said.
        follow: told of each pattern that is in force from then on.
    """
    began, current_look = time.monotonic(), ""

    def look(number: int, windows: int) -> None:
        nonlocal current_look
        current_look = f"look {number}, {windows} windows: "

    def step(step: Step) -> None:
        number = len(site_layers) - step.pattern.kept
        doubt = f", not told from {len(step.undecided)} more" if step.undecided else ""
        divergence = step.evaluation.mean("divergence")
        expected = "" if divergence is None else f", KL {divergence:.4f}"
        reporter.say(
            f"{current_look}step {number}/{removals}: dropped layer {site_layers[step.removed]}, "
            f"loss {step.evaluation.loss:.4f}{expected}{doubt}, {time.monotonic() - began:.0f} s"
        )
        follow(step.pattern)

    def swap(swap: Swap) -> None:
        reporter.say(
            f"{current_look}refined: layer {site_layers[swap.restored]} full instead of "
            f"{site_layers[swap.removed]}, cost {swap.evaluation.cost:.5f}"
        )

    return SearchProgress(step, swap, look)


def nothing_dropped(plan: Plan) -> str | None:
    """Says that no step is within the limit, and what the cheapest costs; None where one is, or there is none."""
    search, result = plan.search, plan.result
    if result.max_delta is None or result.kept < result.sites:
        return None
    line = f"no step is within --max-delta {result.max_delta:g}: all {result.sites} indexers stay"
    measured = [*search.steps, *search.dp]
    if not measured:
        return line
    least = min(measured, key=lambda pattern: pattern.delta)
    return f"{line}; the least increase that one has is {increase(least, search.confidence)}"


def search_summary(
    plan: Plan, folder: Path, timing: Timing, weight_bytes: int = 0, sizes: IndexerSizes | None = None
) -> None:
    """Prints what a search found, on stderr.

    ``weight_bytes`` of weights came to the devices in this session; ``sizes`` are of the checkpoint's indexers.
    """
    result, tokens, cost = plan.result, plan.tokens, plan.cost
    console = new_console(stderr=True)
    print_line(
        console,
        f"{plan.model.id}: {result.kept} of {result.sites} indexers kept, in {result.layers} layers; "
        "losses in nats per token",
    )
    print_table(console, _comparison(plan))
    memory = {} if sizes is None else {"memory": spared_line(sizes, plan)}
    for name, text in {**_facts(plan), **_sweeps(plan, weight_bytes), **memory}.items():
        print_line(console, f"{name:<8} {text}")
    if line := not_decided(plan):
        print_line(console, line)
    print_line(
        console,
        f"{calibration_windows(plan)} calibration and {tokens.heldout_windows} held-out windows of "
        f"{tokens.window} tokens; "
        f"{timing.seconds:.0f} s" + (f" in {timing.sittings} sessions" if timing.sittings > 1 else ""),
    )
    print_line(
        console,
        f"{cost.search_layer_windows} layer-windows to choose, {cost.fewer:.1f} times fewer than Algorithm 1",
    )
    print_line(console, f"report   {folder / 'report.html'}")
    if plan.lacks_indexers:
        print_line(
            console,
            f"losses are with distilled indexers; to make them: indexcache distill {folder} --out DIR",
        )


def _comparison(plan: Plan) -> Table:
    """The plan beside its baselines: held out where that was measured, and in sample."""
    sites, confidence, sample = plan.result.sites, plan.search.confidence, in_sample(plan)
    if plan.heldout is None:
        title = f"increase, in sample{at_confidence(sample.values(), confidence)}"
        return loss_table(sites, plan.search.baseline_loss, sample, title=title)
    heldout = held_out(plan.heldout)
    title = f"increase, held out{at_confidence(heldout.values(), confidence)}"
    return loss_table(sites, plan.heldout.baseline_loss, heldout, sample, title)


def _facts(plan: Plan) -> dict[str, str]:
    """What is worth a line each, by a word for it."""
    search, result = plan.search, plan.result
    facts = {"pattern": result.layer_pattern}
    if search.strategy != "dp" and any(pattern.pattern == result.pattern for pattern in search.dp):
        facts["dp"] = "gives the same pattern"
    if search.pinned_layers:
        facts["pinned"] = f"{layers(search.pinned_layers)}, in uniform too"
    if search.students is not None:
        facts["students"] = f"{search.students.count} distilled indexers, {search.students.steps} steps each"
    if (decided := decided_steps(plan)) is not None:
        facts["steps"] = f"{decided.count} of {decided.steps} decided at {percent(decided.confidence)}"
    if (chance := least_chance(plan)) is not None:
        facts["chances"] = f"{stay(chance)} of the documents"
    if plan.probes is not None:
        facts["probes"] = probes_line(plan.probes)
    if line := shorter_window(plan):
        facts["length"] = line.replace("`", "")
    return facts


def _sweeps(plan: Plan, weight_bytes: int) -> dict[str, str]:
    """How often the search passed over the layers, and what that moved where weights streamed."""
    if plan.cost.sweeps is None:
        return {}
    line = f"{plan.cost.sweeps} passes over the layers"
    if weight_bytes:
        line += f"; {byte_count(weight_bytes)} of weights came to the devices in this session, load and checks too"
    return {"sweeps": line}


def probes_line(probes: ProbesRecord) -> str:
    """What the plan costs on probes beside uniform, and how many answers are right."""
    both = probes.all
    uniform = both.uniform.loss - both.full.loss
    accuracy = ", ".join(
        f"{name} {100 * scores.accuracy:.0f} %"
        for name, scores in (("all full", both.full), ("plan", both.plan), ("uniform", both.uniform))
    )
    return f"{both.delta:+.3f} nats an answer token (uniform {uniform:+.3f}); right: {accuracy}"
