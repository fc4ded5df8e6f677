"""A hub on this machine: models come at one commit, weights and all, and what is missing is said."""

import json
import os
import subprocess
import sys

import pytest
from local_hub import serving


@pytest.fixture(scope="module")
def hub(checkpoints):
    """A running hub: its address, and what it was asked for."""
    asked = []
    folders = {"a" * 40: checkpoints["glm_moe_dsa"], "b" * 40: checkpoints["eight"]}
    with serving(folders, asked) as address:
        yield address, asked


# One process that is online, then offline: importing torch takes most of the time of either command.
COMMANDS = """
import json, sys
import huggingface_hub.constants
from indexcache.cli import main
for offline, arguments in json.loads(sys.argv[1]):
    huggingface_hub.constants.HF_HUB_OFFLINE = offline
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise
"""


@pytest.fixture
def run(hub, tmp_path):
    """Runs a program, the command line itself if not told otherwise, against the hub with an empty cache."""

    def run(*arguments, program=("-m", "indexcache.cli"), **changes):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub[0],
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        environment |= {"NO_PROXY": "127.0.0.1", **changes}
        command = [sys.executable, *program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


def test_a_hub_model_is_searched_at_the_commit_that_was_asked_for(run, hub, text_file, tmp_path):
    arguments = ["--model", "acme/tiny", "--revision", "v1", "--dataset", text_file, "--keep", 0.5, "--window", 48]
    search = ["search", *arguments, "--windows", 2, "--heldout", 2, "--out", tmp_path / "run", "--json", "-q"]
    again = ["eval", tmp_path / "run", "--json", "-q"]
    commands = [(offline, list(map(str, command))) for offline, command in ((False, search), (True, again))]
    done = run(json.dumps(commands), program=("-c", COMMANDS))
    assert done.returncode == 0, done.stderr
    plan, end = json.JSONDecoder().raw_decode(done.stdout)
    assert plan["model"]["revision"] == "b" * 40
    assert plan["model"]["layers"] == 8, "the files of another commit were read"
    assert not any("/resolve/main/" in path or "a" * 40 in path for path in hub[1])
    # What is in the cache is enough from then on.
    assert json.loads(done.stdout[end:])["plan"] == plan["heldout"]["plan"]


@pytest.mark.parametrize(
    ("model", "revision", "says"),
    [("acme/other", "main", "neither a local folder nor on the hub"), ("acme/tiny", "v9", "no revision 'v9'")],
)
def test_what_the_hub_does_not_have_is_one_line(run, model, revision, says):
    done = run("inspect", model, "--revision", revision)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr


def test_a_hub_out_of_reach_is_one_line(run):
    done = run("inspect", "acme/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "reachable" in done.stderr
