"""The same search gives the same bytes: again, with other hash seeds, threads, batches and process counts."""

import functools
import os
import signal
import subprocess
import sys

import pytest
import torch
from children import kill_after, run_child, run_together

from indexcache.search.plan.file import read_plan


def plan_of(folder):
    return (folder / "plan.json").read_bytes()


SEARCHES = """
import sys, torch
from indexcache.cli import main
for threads in sys.argv[1].split(","):
    torch.set_num_threads(int(threads))
    try:
        main([*sys.argv[2:], "--out", threads])
    except SystemExit as stop:
        assert not stop.code
"""


def pattern_of_each_step(folder):
    return [step.pattern for step in read_plan(folder).search.steps]


@pytest.mark.reliability("R17")
def test_again_with_other_hash_seeds_and_threads(real, cases, full, tmp_path):
    """A CPU's products are rounded by how many threads share them, so plans are the same for equal threads.

    The plan says how many they were. The patterns are the same whatever they were.
    """
    arguments, reference = real
    threads, seeds = ((1, 2, 4) if full else (2,)), ((0, 1) if full else (1,))
    for seed in seeds:
        (tmp_path / str(seed)).mkdir()
        ended = subprocess.run(
            [sys.executable, "-c", SEARCHES, ",".join(map(str, threads)), *map(str, arguments)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=tmp_path / str(seed),
            capture_output=True,
            text=True,
            check=False,
        )
        cases.check(ended.returncode == 0, ended.stderr[-500:])
    for count in threads:
        first = tmp_path / str(seeds[0]) / str(count)
        for seed in seeds:
            folder = tmp_path / str(seed) / str(count)
            same = plan_of(folder) == plan_of(reference if count == 1 else first)
            cases.check(same, f"{count} threads, hash seed {seed}: another plan")
            same = pattern_of_each_step(folder) == pattern_of_each_step(reference)
            cases.check(same, f"{count} threads, hash seed {seed}: other patterns")
        killed = functools.partial(with_threads, count, 9)
        run_child([*arguments, "--out", tmp_path / f"resumed{count}"], tmp_path, killed)
        ended = run_child([*arguments, "--out", tmp_path / f"resumed{count}"], tmp_path)
        cases.check(plan_of(tmp_path / f"resumed{count}") == plan_of(first), f"{count} threads, then one: {ended}")
    for number in range(3 if full else 0):
        ended = run_child([*arguments, "--out", tmp_path / f"again{number}"], tmp_path)
        cases.check(ended.code == 0 and plan_of(tmp_path / f"again{number}") == plan_of(reference), str(ended))


def with_threads(count, pieces):
    torch.set_num_threads(count)
    kill_after(pieces)


@pytest.mark.reliability("R18")
def test_resumed_with_other_batches_and_process_counts(real, cases, full, tmp_path):
    arguments, reference = real
    ways = [(rows, processes) for rows in (1, 3, None) for processes in (1, 2, 3)]
    for number, (rows, processes) in enumerate(ways if full else [(1, 2)]):
        out = tmp_path / str(number)
        other_rows, other_processes = ways[-1 - number]
        killed = run_together(
            with_rows(arguments, out, other_rows), tmp_path, other_processes, stop_after=5 + number
        )
        ended = run_together(with_rows(arguments, out, rows), tmp_path, processes)
        fine = killed[0].code == -signal.SIGKILL and all(process.code == 0 for process in ended)
        same = fine and plan_of(out) == plan_of(reference)
        cases.check(same, f"{other_rows} rows in {other_processes}, then {rows} in {processes}: {killed} {ended}")


def with_rows(arguments, out, rows):
    return [*arguments, "--out", out, *(["--max-rows", rows] if rows else [])]
