"""The estimate command: what a search will cost, counted and timed, and its table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ..dsa.checkpoint.stored.weights import find_weights
from ..dsa.model.evaluator import Evaluator
from ..dsa.model.losses import PatternLosses
from ..dsa.model.tail import Window
from ..dsa.stream.footprint import footprint
from ..errors import ModelError
from ..evaluate import CALIBRATION
from ..pattern import Pattern
from ..search.estimate import ExpectedCost
from ..system import processes
from ..system.console import Reporter, byte_count, duration, new_console
from ..system.exits import print_result
from ..system.launching import speaks
from .estimate_layouts import Prices, price_layouts, prices_document, prices_table
from .estimate_machine import Pricing
from .job.measure import load
from .job.prepare import Intent, Job


@dataclass(frozen=True)
class EstimateOutcome:
    """What a search is expected to cost.

    Args:
        layer_seconds: of one layer on one window, full and shared; None where none was timed.
        sweep_bytes: of the weights that a sweep reads where they stream, as stored; None where no headers tell.
        prices: on the machine that was asked about; None where none was.
    """

    model: str
    sites: int
    layers: int
    kept: int
    strategy: str
    student_steps: int
    windows: int
    heldout: int
    window: int
    expected: ExpectedCost
    layer_seconds: tuple[float, float] | None
    sweep_bytes: int | None = None
    prices: Prices | None = None

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of weights that all sweeps read where they stream."""
        return None if self.sweep_bytes is None else self.sweep_bytes * self.expected.sweeps

    @property
    def seconds(self) -> float | None:
        """Expected seconds of the measurements, all processes kept busy."""
        if self.layer_seconds is None:
            return None
        full, shared = self.layer_seconds
        full_layers = self.expected.layer_windows - self.expected.shared_layer_windows
        return (full_layers * full + self.expected.shared_layer_windows * shared) / processes.process_count()


def estimate(intent: Intent, timed: bool, reporter: Reporter, pricing: Pricing | None = None) -> EstimateOutcome:
    """What a search will cost: counted from the config, then timed on one window of any tokens.

    Args:
        intent: the search; a ``Job``, whose text and folder were checked too, or less.
        timed: load the weights and time a window.
        reporter: told of progress.
        pricing: a machine whose layouts are to be priced too.

    Raises:
        IndexcacheError: one of its kinds, for whatever is wrong.
    """
    checkpoint, method, length = intent.checkpoint, intent.method, intent.length
    expected = intent.expected(reporter)
    reporter.say(
        f"about {expected.search_layer_windows:,} layer-windows of {length} tokens to choose, where Algorithm 1 "
        f"takes {expected.algorithm_1_layer_windows:,}; about {expected.layer_windows:,} in all"
    )
    windows, heldout, *_ = intent.window_counts
    layer_seconds = _time_layers(intent, reporter) if timed else None
    prices = None if pricing is None else price_layouts(intent, pricing, layer_seconds, reporter)
    sizes = footprint(checkpoint, intent.running.computes_in.itemsize)
    return EstimateOutcome(
        model=checkpoint.model_id,
        sites=len(checkpoint.site_layers),
        layers=checkpoint.layers,
        kept=method.deepest(intent.goal, len(checkpoint.site_layers)),
        strategy=method.strategy,
        student_steps=method.student_steps,
        windows=windows,
        heldout=heldout,
        window=length,
        expected=expected,
        layer_seconds=layer_seconds,
        sweep_bytes=None if sizes is None or sizes.missing else sizes.streamed,
        prices=prices,
    )


def _time_layers(intent: Intent, reporter: Reporter) -> tuple[float, float]:
    """Seconds of a full and of a shared layer on one window, its loss included; a first run warms up."""
    checkpoint, length = intent.checkpoint, intent.length
    try:
        weights = (
            intent.weights if isinstance(intent, Job) else processes.run_on_main(lambda: find_weights(checkpoint))
        )
        model = load(checkpoint, weights, intent.running, length, reporter).model
    except ModelError as error:
        error.hint = error.hint or "--no-time counts without weights"
        raise
    reporter.doing("timing a window")
    losses = PatternLosses(model, checkpoint.site_layers)
    # Which tokens they are makes no difference to the time.
    window = Window((CALIBRATION, 0), [number % checkpoint.vocabulary for number in range(length)])
    measure, sites = Evaluator(losses, {CALIBRATION: [window]}), len(checkpoint.site_layers)

    def seconds(pattern: Pattern) -> float:
        measure([pattern], CALIBRATION)
        began = time.perf_counter()
        measure([pattern], CALIBRATION)
        return (time.perf_counter() - began) / checkpoint.layers

    # The two ends between which all patterns lie.
    return seconds(Pattern.all_full(sites)), seconds(Pattern.from_full(sites, [0]))


def show(outcome: EstimateOutcome, as_json: bool) -> None:
    """Prints what a search will cost, on stdout."""
    if speaks():
        if as_json:
            print_result(estimate_document(outcome))
        else:
            estimate_table(outcome)


def estimate_document(outcome: EstimateOutcome) -> dict[str, Any]:
    """A search's expected cost as JSON."""
    expected = outcome.expected
    return {
        "model": outcome.model,
        "sites": outcome.sites,
        "layers": outcome.layers,
        "kept": outcome.kept,
        "strategy": outcome.strategy,
        "windows": outcome.windows,
        "heldout_windows": outcome.heldout,
        "window": outcome.window,
        "window_evaluations": expected.window_evaluations,
        "tokens": expected.window_evaluations * outcome.window,
        "layer_windows": expected.layer_windows,
        "search_layer_windows": expected.search_layer_windows,
        "algorithm_1_layer_windows": expected.algorithm_1_layer_windows,
        "fewer": round(expected.fewer, 2),
        "seconds_per_full_layer": outcome.layer_seconds and outcome.layer_seconds[0],
        "seconds_per_shared_layer": outcome.layer_seconds and outcome.layer_seconds[1],
        "seconds": outcome.seconds,
        "sweeps": expected.sweeps,
        "weight_bytes_a_sweep": outcome.sweep_bytes,
        "weight_bytes": outcome.weight_bytes,
        **({"students": expected.students, "steps_a_student": outcome.student_steps} if expected.students else {}),
    } | ({} if outcome.prices is None else prices_document(outcome.prices))


def estimate_table(outcome: EstimateOutcome) -> None:
    """Prints a search's expected cost, on stdout."""
    expected, seconds = outcome.expected, outcome.seconds
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "search": f"{outcome.sites} sites, searched down to {outcome.kept}, {outcome.strategy}",
        "windows": f"{outcome.windows} and {outcome.heldout} held out, of {outcome.window} tokens",
        "to choose": f"about {expected.search_layer_windows:,} layer-windows; Algorithm 1 takes "
        f"{expected.algorithm_1_layer_windows:,}, {expected.fewer:.1f} times as many",
        "in all": f"about {expected.layer_windows:,} layer-windows, with baselines and checks",
        "sweeps": _sweeps(outcome),
        "students": f"about {expected.students:,} indexers distilled for {outcome.student_steps} steps each, "
        "which is not timed",
        "time": "not timed"
        if seconds is None
        else f"about {duration(seconds)} of measuring, from one window here",
    }
    if not expected.students:
        del rows["students"]
    for name, value in rows.items():
        table.add_row(name, value)
    new_console(narrow=True).print(table)
    if outcome.prices is not None:
        prices_table(outcome.prices)


def _sweeps(outcome: EstimateOutcome) -> str:
    """How often the layers are passed over, and what that moves where their weights stream."""
    passes = f"about {outcome.expected.sweeps:,} passes over the layers"
    if outcome.sweep_bytes is None or outcome.weight_bytes is None:
        return passes
    once, always = byte_count(outcome.sweep_bytes), byte_count(outcome.weight_bytes)
    return f"{passes}; where weights stream, {once} a pass and {always} in all"
