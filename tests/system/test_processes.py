"""Sharing windows out over processes: one process here, two under accelerate launch."""

import json
import os
import subprocess
import sys

import pytest
from children import run_together
from random_models import load_checkpoint

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.load import Placement
from indexcache.errors import DatasetError, IndexcacheError, SettingError
from indexcache.system import processes


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
    assert json.loads((tmp_path / "two" / "timing.json").read_text())["processes"] == 2
    assert together == alone


def test_an_error_of_the_main_process_is_raised_everywhere_and_told_once(checkpoints, tmp_path):
    out = tmp_path / "out"
    main, other = run_together(arguments(checkpoints, tmp_path / "missing.jsonl", out), tmp_path, 2)
    assert (main.code, other.code) == (2, 2), (main, other)
    assert (main.err.count("error: dataset"), other.err) == (1, ""), (main, other)
    assert json.loads(main.out)["error"]["type"] == "DatasetError"
    assert not other.out
    assert not (out / "plan.json").exists()


def test_an_unforeseen_error_of_the_main_process_reaches_the_others(monkeypatch):
    sent = []
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", sent.append)

    def job():
        raise KeyError("lost")

    with pytest.raises(IndexcacheError, match="unexpected KeyError") as caught:
        processes.run_on_main(job)
    assert caught.value.shared
    assert sent[0][1] is caught.value


def test_another_process_raises_what_the_main_process_sent(monkeypatch):
    def receive(outcome):
        outcome[1] = DatasetError("nothing there")

    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", receive)
    with pytest.raises(DatasetError, match="nothing there"):
        processes.run_on_main(lambda: pytest.fail("the job ran on another process than the main one"))


def test_several_processes_cannot_each_have_a_device_map(monkeypatch, checkpoints):
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    with pytest.raises(SettingError, match="device map"):
        load_checkpoint(open_checkpoint(str(checkpoints["glm_moe_dsa"])), placement=Placement("auto"))
