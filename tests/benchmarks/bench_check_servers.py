"""Servers of the embedded model that run the plan, other patterns or a fault: what check says of each.

    make bench-check-servers                                       a plan, with its fingerprint, in outputs/tiny
    python tests/benchmarks/bench_check_servers.py --plan DIR/plan.json --neighbours 20 --dtype bfloat16

Each server is a thread of this process, on a port of its own; check asks it over HTTP as it asks an engine. A
verdict is right where the plan is told from all else: "plan" for the plan, the pattern's name for those that the
fingerprint knows, and another than "plan" for neighbours, patterns one swap away.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from bench_setting import ROOT
from model_predictions import ModelPredictions, neighbours
from pattern_servers import Dialect, LlamaCppPython, serving
from rich.console import Console
from rich.table import Table

import indexcache
from indexcache.commands.check import CheckOutcome, check
from indexcache.commands.check_settings import CheckSettings
from indexcache.dsa.checkpoint.config import load_tokenizer, open_checkpoint
from indexcache.pattern import Pattern
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import Plan
from indexcache.system.console import Reporter

DIALECTS = {"vllm": Dialect, "llama-cpp-python": LlamaCppPython}


def cases(plan: Plan, count: int) -> list[tuple[str, str, bool]]:
    """Names of what a server runs, the pattern of its sites, and whether its indexers rotate halves."""
    pattern = plan.result.pattern
    sites = len(pattern)
    uniform = Pattern.uniform(sites, plan.pattern.kept, plan.pinned_sites).roles
    named = [("plan", pattern, False), ("all full", "F" * sites, False), ("uniform", uniform, False)]
    named += [("shifted by one layer", f"F{pattern[:-1]}", False), ("half-split rope", pattern, True)]
    return named + [(f"neighbour {letters}", letters, False) for letters in neighbours(pattern, count)]


def is_right(name: str, outcome: CheckOutcome) -> bool:
    """Whether a verdict is that of what the server runs."""
    verdict = outcome.verdict
    if name == "plan":
        return verdict.kind == "plan"
    known = {pattern.name for pattern in outcome.fingerprint.patterns if not pattern.near}
    if name in known:
        return verdict.kind == "other" and verdict.pattern == name
    return verdict.kind in ("none", "other")


def main() -> None:
    """Asks a server of each case, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=ROOT / "outputs" / "tiny" / "plan.json")
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--dialect", choices=DIALECTS, default="vllm")
    options = parser.parse_args()
    plan = read_plan(options.plan)
    checkpoint = str(ROOT / plan.model.id) if (ROOT / plan.model.id).is_dir() else plan.model.id
    model = indexcache.load(checkpoint, plan=plan, verify=False).to(getattr(torch, options.dtype)).eval()
    tokenizer = load_tokenizer(open_checkpoint(checkpoint))
    table = Table("server runs", "verdict", "right", "requests", "spreads away", "s")
    wrong = 0
    for name, pattern, half_split in cases(plan, options.neighbours):
        begin = time.monotonic()
        dialect = DIALECTS[options.dialect](
            ModelPredictions(model, pattern, half_split),
            lambda token: tokenizer.decode([token]),
            lambda text: tokenizer(text)["input_ids"],
        )
        with serving(dialect) as url, Reporter(quiet=True) as reporter:
            outcome = check(options.plan, CheckSettings(url), reporter)
        right, evidence = is_right(name, outcome), outcome.verdict.evidence
        wrong += not right
        said = outcome.verdict.pattern if outcome.verdict.kind == "other" else outcome.verdict.kind
        row = [name, str(said), "yes" if right else "NO", str(outcome.asked), f"{evidence.deviations:.2f}"]
        table.add_row(*row, f"{time.monotonic() - begin:.1f}")
    Console(width=110).print(table)
    lengths = [len(prefix.tokens) for prefix in outcome.fingerprint.prefixes]
    print(f"{options.dtype}, {len(table.rows)} servers, {wrong} wrong or not sure")
    print(f"prefixes of {min(lengths)} to {max(lengths)} tokens")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
