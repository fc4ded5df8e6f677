"""Sharing windows out over processes: one process here, two under accelerate launch."""

import json
import os
import subprocess
import sys

import pytest

from indexcache.dsa import processes
from indexcache.errors import DatasetError


def test_one_process_keeps_everything():
    assert processes.merge({0: "a", 1: "b"}) == {0: "a", 1: "b"}
    assert processes.is_main()
    assert processes.process_index() == 0


def test_merging_brings_every_part_together(monkeypatch):
    parts = [{0: "a", 2: "c"}, {1: "b"}, {}]
    monkeypatch.setattr(processes, "process_count", lambda: 3)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda part: parts)
    assert processes.merge(parts[0]) == {0: "a", 1: "b", 2: "c"}


def launch(arguments, folder):
    """Runs the command line under ``accelerate launch`` with two CPU processes."""
    # --multi_gpu is what makes accelerate start several processes; the variable puts them on the CPU.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "indexcache.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def arguments(checkpoints, text_file, out):
    options = {"model": checkpoints["eight"], "dataset": text_file, "window": 48, "windows": 5, "heldout": 3}
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["search", *given, "--keep", "0.5", "--out", out, "--json", "--quiet"]


def test_two_processes_find_the_same_plan(checkpoints, text_file, tmp_path, run_cli):
    done = launch(arguments(checkpoints, text_file, tmp_path / "two"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads(done.stdout)
    code, out, _ = run_cli(*arguments(checkpoints, text_file, tmp_path / "one"))
    assert code == 0
    alone = json.loads(out)
    assert together["timing"]["processes"] == 2
    assert together["tokens"] == alone["tokens"]
    assert together["cost"] == alone["cost"]
    for ours, theirs in zip(together["search"]["steps"], alone["search"]["steps"], strict=True):
        assert ours["pattern"] == theirs["pattern"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def test_an_error_in_the_main_process_reaches_the_user_once(checkpoints, tmp_path):
    done = launch(arguments(checkpoints, tmp_path / "missing.jsonl", tmp_path / "out"), tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: dataset") == 1, done.stderr[-2000:]


def test_the_main_process_error_is_raised_everywhere():
    def job():
        raise DatasetError("nothing there")

    with pytest.raises(DatasetError, match="nothing there"):
        processes.main_does(job)
