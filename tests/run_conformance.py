"""Runs engines on the embedded model under an exported plan, as pasted, and compares them with transformers."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conformance.environments import ENGINES, PLACE, ROOT, Engine
from conformance.evidence_table import keep
from conformance.verdict import compared, shifted
from safetensors.numpy import load_file

from indexcache.pattern import indexer_types
from indexcache.search.plan.file import read_plan

MODEL = ROOT / "recipes" / "tiny"
# The cheapest search there is: any plan of the embedded model will do. It is the demo's.
SEARCH = ["--recipe", "tiny", "--keep", "0.25", "--strategy", "dp", "--refine-rounds", "0", "--no-selfcheck"]
SEARCH += ["--windows", "2", "--heldout", "4", "--probes", "0"]
WINDOWS = 4  # held-out ones that are compared
LONGEST_RUN = 600  # seconds


def indexcache(*arguments: str) -> str:
    """What the command prints on stdout.

    Raises:
        RuntimeError: it failed; says what it said.
    """
    command = [sys.executable, "-m", "indexcache", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def searched_plan() -> Path:
    """The embedded model's plan; searched where it was not yet, with this checkpoint and these settings."""
    name = hashlib.sha256(" ".join(SEARCH).encode())
    for file in ("model.safetensors", "config.json"):
        name.update((MODEL / file).read_bytes())
    folder = PLACE / f"plan-{name.hexdigest()[:12]}"
    if not (folder / "plan.json").exists():
        indexcache("search", *SEARCH, "--quiet", "--out", str(folder))
    return folder / "plan.json"


def transformers_logits(windows: np.ndarray, patterns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Logits of the transformers installed here under each pattern, float32, [windows, tokens, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # It reports the indexers of shared layers as weights that it has no use for.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    logits = {}
    for name, pattern in patterns.items():
        types = indexer_types(pattern)
        model = AutoModelForCausalLM.from_pretrained(MODEL, indexer_types=types, dtype=torch.float32).eval()
        with torch.no_grad():
            rows = [model(window[None]).logits for window in torch.from_numpy(windows)]
        logits[name] = torch.cat(rows).numpy()
    return logits


def exported(engine: Engine, plan: Path, place: Path) -> dict[str, Any]:
    """What export prints for the engine, and the folder that it writes if it does."""
    folder = None if engine.write is None else place / "exported"
    written = [] if folder is None else ["--write", str(folder), *(engine.write or ())]
    paste = indexcache("export", str(plan), "--to", engine.name, "--engine-version", engine.version, *written)
    if folder is not None:
        # Where only config.json was written, it takes the place of that in a copy of the checkpoint.
        # Its scripts may have been compiled beside it.
        files = {path.name for path in MODEL.iterdir() if path.is_file()}
        for file in files - {path.name for path in folder.iterdir()}:
            shutil.copy(MODEL / file, folder / file)
    source = engine.source
    return {"paste": paste, "folder": folder and str(folder), "source": source and str(source)}


def answered(engine: Engine, plan: Path, windows: np.ndarray) -> tuple[dict[str, Any], np.ndarray | None]:
    """The engine's answer and its logits, [windows, tokens, vocabulary]; None where it makes none."""
    python = engine.python()
    place = engine.place / "run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    np.save(place / "windows.npy", windows)
    (place / "task.json").write_text(json.dumps(exported(engine, plan, place)), "utf-8")
    log = place / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        command = [python, str(engine.program), str(place / "task.json")]
        done = subprocess.run(command, stdout=out, stderr=out, check=False, timeout=LONGEST_RUN)
    if done.returncode:
        last = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
        raise RuntimeError(f"{engine.name} {engine.version} ended with {done.returncode}:\n{last}")
    answer = json.loads((place / "answer.json").read_text("utf-8"))
    logits = place / "logits.npy"
    return answer, np.load(logits) if logits.exists() else None


def result(
    engine: Engine, pattern: str, plan: Path, windows: np.ndarray, references: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What an engine did with the plan, and what is wrong with it, None where nothing is."""
    answer, logits = answered(engine, plan, windows)
    verdict = compared(pattern, answer["roles"], logits, references)
    fault = verdict.fault
    if answer["version"] != engine.version:
        fault = f"it says that it is {answer['version']}, not {engine.version}"
    if (logits is None) != (engine.evidence == "parsed"):
        fault = "it gave no logits" if logits is None else "it gave logits, which nobody asked for"
    return {
        "engine": engine.name,
        "version": engine.version,
        "evidence": engine.evidence,
        "date": datetime.date.today().isoformat(),
        "remark": engine.remark,
        "python": answer["python"],
        **dataclasses.asdict(verdict),
        "fault": fault,
    }


def sentence(result: Mapping[str, Any], seconds: float) -> str:
    """A result in one line."""
    compared = ""
    if result["rows"]:
        off = ", ".join(f"{count} from {name}" for name, count in result["rows_off"].items())
        compared = f"; of {result['rows']} rows differ {off}, at most {result['largest']:.2g} from the plan"
    said = f"FAILS: {result['fault']}" if result["fault"] else f"{result['evidence']}, layers as in the plan"
    return f"{result['engine']} {result['version']}: {said}{compared}; {seconds:.0f} s"


def conform(engines: Sequence[Engine], plan: Path) -> list[dict[str, Any]]:
    """The engines' results; one that breaks down is said and the others go on."""
    windows = load_file(plan.parent / "windows.safetensors")["heldout"][:WINDOWS].astype(np.int64)
    pattern = read_plan(plan).result.layer_pattern
    patterns = {"plan": pattern, "all full": "F" * len(pattern), "off by one": shifted(pattern)}
    compares = any(engine.evidence == "ran" for engine in engines)
    references = transformers_logits(windows, patterns) if compares else {}
    results = []
    for engine in engines:
        start = time.monotonic()
        try:
            found = result(engine, pattern, plan, windows, references)
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(f"{engine.name} {engine.version}: BROKE DOWN: {error}", flush=True)
            continue
        print(sentence(found, time.monotonic() - start), flush=True)
        results.append(found)
    return results


def main() -> int:
    """Runs the engines that were named, or all; 0 if all run the plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(ENGINES)} [all]")
    parser.add_argument("--plan", type=Path, help="of the embedded model [searched, in half a minute]")
    parser.add_argument("--write", action="store_true", help="keep the results, and make the table from them")
    options = parser.parse_args()
    unknown = [name for name in options.engines if name not in ENGINES]
    if unknown:
        parser.error(f"no engine {unknown[0]!r}; there are {', '.join(ENGINES)}")
    engines = [ENGINES[name] for name in options.engines or ENGINES]
    results = conform(engines, options.plan or searched_plan())
    passed = [result for result in results if result["fault"] is None]
    if options.write:
        keep(passed)
        print(f"kept {len(passed)} results and made the table from them")
    return int(len(passed) < len(engines))


if __name__ == "__main__":
    sys.exit(main())
