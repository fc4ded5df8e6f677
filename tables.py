"""What the commands print for people, and the same as JSON documents."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from .groups import SPOKEN
from .pattern import kept_sites, layer_ranges
from .plain_text import columns, one_line, wrapped
from .search.export import Export
from .search.plan import Plan
from .search.prefills import PrefillRecord
from .search.report import increase
from .search.timing import Timing

if TYPE_CHECKING:
    from .applying import Continuation
    from .dsa.checkpoint import Checkpoint, Sizes
    from .workflow import EstimateOutcome, EvalOutcome


def search_summary(plan: Plan, folder: Path, timing: Timing) -> None:
    """Prints what a search found, on stderr."""
    result, tokens = plan.result, plan.tokens
    table = _losses(plan.heldout is not None)
    held = plan.heldout
    full = ["all full", str(result.sites), f"{plan.search.baseline_loss:.4f}", ""]
    table.add_row(*full, *([""] if held else []))
    chosen = ["this plan", str(result.kept), f"{result.loss:.4f}", increase(result)]
    table.add_row(*chosen, *([increase(held.plan)] if held else []))
    if result.uniform:
        even = ["uniform", str(result.kept), f"{result.uniform.loss:.4f}", increase(result.uniform)]
        table.add_row(*even, *([increase(held.uniform)] if held else []))
    console = _console(stderr=True)
    _say(
        console,
        f"{plan.model.id}: {result.kept} of {result.sites} indexers kept, in {result.layers} layers; "
        "losses in nats per token",
    )
    console.print(table)
    _say(console, f"pattern  {result.layer_pattern}")
    if plan.search.pinned_layers:
        _say(console, f"pinned   layers {layer_ranges(plan.search.pinned_layers)}, in uniform too")
    _say(
        console,
        f"{tokens.windows} calibration and {tokens.heldout_windows} held-out windows of {tokens.window} tokens; "
        f"{timing.seconds:.0f} s" + (f" in {timing.sittings} sittings" if timing.sittings > 1 else ""),
    )
    cost = plan.cost
    _say(
        console,
        f"{cost.search_layer_windows} layer-windows to choose, {cost.fewer:.1f} times fewer than Algorithm 1",
    )
    _say(console, f"report   {folder / 'report.html'}")


def eval_table(outcome: EvalOutcome) -> None:
    """Prints a plan's check, on stdout."""
    table = _losses(heldout=False)
    table.add_row("all full", str(len(outcome.plan.pattern)), f"{outcome.baseline_loss:.4f}", "")
    for name, each in (("this plan", outcome.plan), ("uniform", outcome.uniform)):
        table.add_row(name, str(each.kept), f"{each.loss:.4f}", increase(each))
    console = _console()
    _say(console, f"{outcome.windows} {SPOKEN[outcome.group]} windows, nats per token")
    console.print(table)
    if outcome.passed:
        _say(console, f"passed: at most {outcome.max_delta:g} was allowed")


def eval_document(outcome: EvalOutcome) -> dict[str, Any]:
    """A plan's check as JSON."""
    return {
        "group": outcome.group,
        "windows": outcome.windows,
        "baseline_loss": outcome.baseline_loss,
        "plan": outcome.plan.model_dump(),
        "uniform": outcome.uniform.model_dump(),
        "max_delta": outcome.max_delta,
        "passed": outcome.passed,
    }


def continuation_table(found: Continuation) -> None:
    """Prints how a prompt goes on, on stdout."""
    console = _console()
    _say(console, f"{found.prompt_tokens} tokens, continued greedily")
    for name, ids, text in (("this plan", found.plan, found.plan_text), ("all full", found.full, found.full_text)):
        console.print(f"\n{name}, {len(ids)} tokens:")
        console.print(text, markup=False, soft_wrap=True)
    console.print()
    _say(console, f"alike in the first {found.agreed} of {max(len(found.full), len(found.plan))} tokens")
    if not found.choosing:
        _say(console, "no position sees more keys than indexers select, so that nothing could differ")


def continuation_document(found: Continuation) -> dict[str, Any]:
    """A continuation as JSON."""
    return {
        "prompt_tokens": found.prompt_tokens,
        "positions_that_choose": found.choosing,
        "agreed_tokens": found.agreed,
        "plan": {"tokens": list(found.plan), "text": found.plan_text},
        "all_full": {"tokens": list(found.full), "text": found.full_text},
    }


def export_document(plan: Plan, exported: Export, written: Path | None) -> dict[str, Any]:
    """An engine's settings as JSON; ``pattern`` is what they spell, a letter for each of ``pattern_layers``."""
    return {
        "engine": exported.engine,
        "model_type": plan.model.model_type,
        "settings": exported.settings,
        "paste": exported.paste,
        "pattern": exported.pattern,
        "pattern_layers": list(exported.pattern_layers),
        "layer_pattern": plan.result.layer_pattern,
        "site_pattern": plan.result.pattern,
        "warnings": [{"severity": remark.severity, "text": remark.text} for remark in exported.warnings],
        "written": written and str(written),
    }


def bench_table(record: PrefillRecord, path: Path) -> None:
    """Prints prefill times, on stdout."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("context", justify="right")
    for name in ("all full, s", "indexers", "this plan, s", "indexers", "speedup"):
        table.add_column(name, justify="right")
    for point in record.points:
        full, plan = point.all_full, point.plan
        if full is None or plan is None:
            table.add_row(f"{point.context:,}", "does not fit", "", "", "", "")
            continue
        shares = [f"{each.indexer_share:.0%}" for each in (full, plan)]
        seconds = [f"{each.seconds:.3g}" for each in (full, plan)]
        table.add_row(f"{point.context:,}", seconds[0], shares[0], seconds[1], shares[1], f"{point.speedup:.2f}x")
    console = _console()
    weights = ", random weights" if record.random_weights else ""
    _say(
        console,
        f"prefill of {record.model} on {record.device}, {record.dtype}{weights}; {record.indexer} indexers, "
        f"{record.attention} attention; medians of {record.repeats}",
    )
    console.print(table)
    _say(console, f"written  {path}, and into the report beside it")


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
    }


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
        "time": "not timed"
        if seconds is None
        else f"about {_duration(seconds)} of measuring, from one window here",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    _console(narrow=True).print(table)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def inspect_document(checkpoint: Checkpoint, sizes: Sizes) -> dict[str, Any]:
    """A checkpoint's facts as JSON."""
    text, family, sites = checkpoint.text, checkpoint.family, len(checkpoint.site_layers)
    return {
        "model": checkpoint.model_id,
        "revision": checkpoint.revision,
        "model_type": checkpoint.config.model_type,
        "family": family and family.model_type,
        "architecture": checkpoint.architecture,
        "layers": checkpoint.layers,
        "sites": sites,
        "site_layers": list(checkpoint.site_layers),
        "shared_layers": list(checkpoint.shared_layers),
        "selection_width": checkpoint.selection_width,
        "shortest_informative_window": checkpoint.selection_width + 2,
        "selects": family and family.selects,
        "assumed": list(checkpoint.assumed),
        "unmeasured": list(checkpoint.unmeasured),
        "max_position_embeddings": checkpoint.longest,
        "index_heads": getattr(text, family.index_heads if family else "index_n_heads", None),
        "index_head_dim": getattr(text, family.index_head_dim if family else "index_head_dim", None),
        "parameters": sizes.parameters,
        "indexer_parameters": sizes.indexer_parameters,
        "idle_parameters": sizes.idle_parameters,
        "kept_at_half": kept_sites(sites, 0.5),
        "kept_at_quarter": kept_sites(sites, 0.25),
        "kept_at_eighth": kept_sites(sites, 0.125),
    }


def inspect_table(document: dict[str, Any]) -> None:
    """Prints a checkpoint's facts, on stdout."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    idle = f", {document['idle_parameters']:,} in towers that text does not run through"
    rows = {
        "model": f"{document['model']} ({document['architecture']}, {document['model_type']})",
        "layers": f"{document['layers']}, {document['sites']} of them sites",
        "sites": layer_ranges(document["site_layers"]),
        "shared in the checkpoint": layer_ranges(document["shared_layers"]) or "none",
        "chosen": _chosen(document),
        "positions": str(document["max_position_embeddings"]),
        "indexer": f"{document['index_heads']} heads of {document['index_head_dim']}",
        "parameters": f"{document['parameters']:,}, {document['indexer_parameters']:,} of them in indexers"
        + (idle if document["idle_parameters"] else ""),
        "kept at 1/2, 1/4, 1/8": ", ".join(
            str(document[f"kept_at_{part}"]) for part in ("half", "quarter", "eighth")
        ),
    }
    rows |= {"assumed": "; ".join(document["assumed"])} if document["assumed"] else {}
    rows |= {"not measured": "; ".join(document["unmeasured"])} if document["unmeasured"] else {}
    for name, value in rows.items():
        table.add_row(name, one_line(value))
    _console(narrow=True).print(table)


def _chosen(document: dict[str, Any]) -> str:
    if not document["selection_width"]:
        return "unknown: no index_topk"
    return (
        f"{document['selects'] or 'keys'}, where a query sees more than {document['selection_width']} keys; "
        f"windows of {document['shortest_informative_window']} tokens and more tell patterns apart"
    )


def _losses(heldout: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("pattern")
    for name in ["kept", "loss", "increase", *(["increase, held out"] if heldout else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


class _Console(Console):
    """Plain text unless a terminal reads it, whatever the environment says; a reader that left is no failure."""

    def on_broken_pipe(self) -> None:
        """Leaves the exit code to the command line; rich's own would be that of a failed check."""
        raise BrokenPipeError


def _say(console: Console, line: str) -> None:
    """Prints a line of words, which ends at words on a terminal and is left whole elsewhere."""
    console.print(wrapped(line, console.file), soft_wrap=True)  # type: ignore[arg-type]


def _console(stderr: bool = False, narrow: bool = False) -> Console:
    """On a terminal as wide as that, at least for tables of words (``narrow``); figures are never cut off."""
    stream = sys.stderr if stderr else sys.stdout
    width = columns(stream) if narrow else None
    return _Console(
        file=stream,
        force_terminal=stream.isatty(),
        width=width or max(100, shutil.get_terminal_size().columns),
        highlight=False,
        markup=False,
        emoji=False,
    )
