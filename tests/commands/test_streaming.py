"""Layers from memory, the host or files, in any number of processes: one plan, whoever is lost on the way."""

import os
import signal
import time

import pytest
from children import one_line, run_together
from random_models import STREAMS

from indexcache.dsa.stream.fetch import Fetcher

FROM_FILES = ["--max-memory", STREAMS]
FROM_HOST = ["--max-memory", STREAMS, "--max-host-memory", "1GB"]
# Two or three of the six layers, of 0.36 MB each, and the others from files.
FROM_BOTH = ["--max-memory", STREAMS, "--max-host-memory", "1MB"]
# Until a process has ended, on a busy machine.
_SECONDS = 30


@pytest.fixture(scope="module")
def arguments(checkpoints, text_file):
    """Of a search without --out, on windows that two and three processes share out, evenly or not."""
    given = ["search", "--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--window", 40]
    return [*given, "--windows", 4, "--heldout", 2, "--keep", 0.34, "-q"]


@pytest.fixture(scope="module")
def plan(arguments, run_in_module, tmp_path_factory):
    """The plan of one process with all weights in memory."""
    return run_in_module(arguments, tmp_path_factory.mktemp("memory") / "run")


@pytest.fixture(scope="module")
def run_in_module():
    """Runs a search in this process, and gives its plan."""
    from indexcache.cli import main

    def run(arguments, out):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in [*arguments, "--out", out]])
        assert not stop.value.code
        return (out / "plan.json").read_bytes()

    return run


@pytest.mark.reliability("R23")
@pytest.mark.parametrize("room", [FROM_FILES, FROM_HOST, FROM_BOTH], ids=["files", "host", "both"])
def test_one_process(room, arguments, plan, run_in_module, tmp_path):
    assert run_in_module([*arguments, *room], tmp_path / "run") == plan


@pytest.mark.reliability("R18")
def test_killed_in_one_layout_and_resumed_in_another(arguments, plan, run_in_module, tmp_path):
    out = tmp_path / "run"
    killed = run_together([*arguments, *FROM_FILES, "--out", out], tmp_path, 2, stop_after=3)
    assert killed[0].code == -signal.SIGKILL, killed
    assert not (out / "plan.json").exists(), "it was killed too late for much to be left to do"
    assert run_in_module([*arguments, "--resume", "required"], out) == plan


def lost_while_gathering(rank, mark, how):
    """The second process ends as it begins to bring a layer of a later sweep, and leaves a file when it does."""
    if rank != 1:
        return
    bring, brought = Fetcher._bring, []

    def bring_and_die(self, layer):
        brought.append(layer)
        if len(brought) == 20:
            mark.touch()
            how()
        return bring(self, layer)

    Fetcher._bring = bring_and_die


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory():
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.reliability("R18")
@pytest.mark.parametrize(
    ("how", "code"), [(kill, -signal.SIGKILL), (run_out_of_memory, 2)], ids=["killed", "memory"]
)
def test_a_process_that_is_lost_while_gathering(how, code, arguments, plan, run_in_module, tmp_path):
    """The other one ends by itself in seconds, and not after its patience of hours; any number of them goes on."""
    command, mark = [*arguments, "--out", tmp_path / "run"], tmp_path / "struck"
    main, other = run_together(
        [*command, *FROM_HOST], tmp_path, 2, prepare=lambda rank: lost_while_gathering(rank, mark, how)
    )
    assert time.time() - mark.stat().st_mtime < _SECONDS
    assert other.code == code, other
    assert (main.code, one_line(main.err)) == (75, True), main
    assert main.err.startswith("error: another process of this run was lost")
    if how is run_out_of_memory:
        assert other.err.startswith("error in process 1: out of memory on a window of 40 tokens")
        assert run_in_module([*arguments, "--resume", "required"], tmp_path / "run") == plan
        return
    again = run_together([*command, *FROM_FILES, "--resume", "required"], tmp_path, 3)
    assert [process.code for process in again] == [0, 0, 0], again
    assert (tmp_path / "run" / "plan.json").read_bytes() == plan


@pytest.mark.parametrize("option", [["--device-map", "auto"], ["--offload-folder", "offload"]])
@pytest.mark.parametrize("command", ["search", "estimate", "eval"])
def test_options_that_placed_weights_name_what_places_them_now(
    command, option, arguments, searched, run_cli, tmp_path
):
    given = {
        "search": [*arguments, "--out", tmp_path / "run"],
        "estimate": ["estimate", *arguments[1:3], "--keep", 0.34, "-q"],
        "eval": ["eval", searched, "-q"],
    }[command]
    code, printed, err = run_cli(*given, *option)
    assert (code, printed, one_line(err)) == (2, "", True), err
    assert f"{option[0]} does not go with measuring" in err
    assert "--max-memory 60GB says what weights may take on each device" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--max-memory", "--max-host-memory"])
def test_sizes_that_are_none_are_named(option, arguments, run_cli, tmp_path):
    code, _, err = run_cli(*arguments, "--out", tmp_path / "run", option, "sixty")
    assert (code, one_line(err)) == (2, True), err
    assert f"{option} is 'sixty'" in err


def test_a_device_too_small_for_one_layer_is_told_which_and_how_much(arguments, run_cli, tmp_path):
    code, _, err = run_cli(*arguments, "--out", tmp_path / "run", "--max-memory", "2.7MB")
    assert (code, one_line(err)) == (2, True), err
    assert "layer 1 takes 0.4 MB, and 0.7 MB with what it is made from" in err
    assert "raise --max-memory" in err
