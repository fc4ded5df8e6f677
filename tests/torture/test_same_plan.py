"""The same search gives the same bytes: again, with other hash seeds, threads, batches and process counts."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from children import Child, run_child

from indexcache.search.journal import Journal, Losses


def plan_of(folder):
    return (folder / "plan.json").read_bytes()


@pytest.mark.reliability("R17")
def test_again_with_other_threads(real, cases, full, tmp_path):
    arguments, reference = real
    for number, threads in enumerate((1, 2, 4) if full else (2,)):
        out = tmp_path / str(number)
        code = f"import sys, torch; torch.set_num_threads({threads})\nfrom indexcache.cli import main; main()"
        seed = str(1 + number % 2)
        ended = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--out", out],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        same = ended.returncode == 0 and plan_of(out) == plan_of(reference)
        cases.check(same, f"{threads} threads, hash seed {seed}: {ended.returncode}: {ended.stderr[-300:]}")
    for number in range(3 if full else 1):
        ended = run_child([*arguments, "--out", tmp_path / f"again{number}"], tmp_path)
        cases.check(ended.code == 0 and plan_of(tmp_path / f"again{number}") == plan_of(reference), str(ended))


def started(arguments, folder, processes, stop_after=None):
    """Runs a search in so many forked processes that work together; the main one is killed after some pieces."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    children = []
    for rank in range(processes):

        def before(rank=rank):
            from accelerate import PartialState

            PartialState._reset_state()
            if rank == 0 and stop_after is not None:
                kill_after(stop_after)

        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", **together}
        children.append(Child(arguments, folder, before, own if processes > 1 else {}))
    ended = [children[0].wait()]
    for child in children[1:]:
        if ended[0].code < 0:  # what a launcher does when one of its processes is gone
            child.kill()
        ended.append(child.wait())
    return ended


def kill_after(pieces):
    append, written = Journal.append, []

    def append_and_die(self, record):
        append(self, record)
        written.extend([record] if isinstance(record, Losses) else [])
        if len(written) == pieces:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = append_and_die


@pytest.mark.reliability("R18")
def test_resumed_with_other_batches_and_process_counts(real, cases, full, tmp_path):
    arguments, reference = real
    ways = [(rows, processes) for rows in (1, 3, None) for processes in (1, 2, 3)]
    for number, (rows, processes) in enumerate(ways if full else [(1, 2)]):
        out = tmp_path / str(number)
        other_rows, other_processes = ways[-1 - number]
        killed = started(with_rows(arguments, out, other_rows), tmp_path, other_processes, stop_after=5 + number)
        ended = started(with_rows(arguments, out, rows), tmp_path, processes)
        fine = killed[0].code == -signal.SIGKILL and all(each.code == 0 for each in ended)
        same = fine and plan_of(out) == plan_of(reference)
        cases.check(same, f"{other_rows} rows in {other_processes}, then {rows} in {processes}: {killed} {ended}")


def with_rows(arguments, out, rows):
    return [*arguments, "--out", out, *(["--max-rows", rows] if rows else [])]


def test_one_thread_is_what_the_tests_compare_with():
    assert torch.get_num_threads() == 1
