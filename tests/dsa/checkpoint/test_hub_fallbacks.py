"""What the hub's side of a checkpoint falls back on: one file, shards, pickles where allowed, and its cache."""

import json
import os
import subprocess
import sys

import pytest
from local_hub import serving

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# The layouts of weights that repositories have, by the revision that holds them; contents do not matter here.
LAYOUTS = {
    "one": ["model.safetensors"],
    "sharded": [*SHARDS, "model.safetensors.index.json"],
    "no-index": SHARDS,
    "both": ["model.safetensors", "pytorch_model.bin"],
    "pickled": ["pytorch_model.bin"],
    "pickled-shards": ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
    "others": ["consolidated.safetensors", "adapter_model.safetensors", "tf_model.h5"],
}
SMALL = ["config.json", "tokenizer.json", "chat_template.jinja", "README.md"]
COMMIT = {name: str(number) * 40 for number, name in enumerate(LAYOUTS)}

# Imports no torch, so that a child takes a second and not five.
CALLS = """
import json, sys
from indexcache.dsa.checkpoint import hub
from indexcache.errors import IndexcacheError
for function, *arguments in json.loads(sys.argv[1]):
    try:
        found = getattr(hub, function)(*arguments)
        folder, commit = found if isinstance(found, tuple) else (found, None)
        names = sorted(path.name for path in folder.glob("*"))  # no folder where nothing was fetched
        print(json.dumps({"files": names, "commit": commit}))
    except IndexcacheError as error:
        print(json.dumps({"error": str(error), "hint": error.hint}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with every layout: its address, and what it was asked for."""
    folders, asked = {}, []
    for name, commit in COMMIT.items():
        folders[commit] = tmp_path_factory.mktemp(name)
        for file in [*LAYOUTS[name], *SMALL]:
            (folders[commit] / file).write_text("{}")
    commits = {**COMMIT, **{commit: commit for commit in COMMIT.values()}, "main": COMMIT["one"]}
    with serving(folders, asked, commits) as address:
        yield address, asked


@pytest.fixture
def call(hub, tmp_path):
    """Calls functions of the hub's side in a child, with an empty cache at first: their results."""

    def call(*calls, **changes):
        environment = {**os.environ, "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **changes}
        done = subprocess.run(
            [sys.executable, "-c", CALLS, json.dumps(calls)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


def weights(name, allow_pickle=False):
    return ["fetch_weights", "acme/tiny", COMMIT[name], allow_pickle]


def test_weights_come_in_whatever_layout_there_is(call):
    """Safetensors with and without an index; pickles only where they are allowed and nothing else is there."""
    plain = call(*(weights(name) for name in ("one", "sharded", "no-index", "both")))
    assert [answer["files"] for answer in plain] == [
        LAYOUTS["one"], LAYOUTS["sharded"], LAYOUTS["no-index"], ["model.safetensors"],
    ]  # fmt: skip
    allowed = call(*(weights(name, True) for name in ("pickled", "pickled-shards", "both")))
    assert [answer["files"] for answer in allowed] == [
        LAYOUTS["pickled"], LAYOUTS["pickled-shards"], ["model.safetensors"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["pickled", "others"])
def test_what_is_not_loaded_is_not_fetched(call, hub, name):
    hub[1].clear()
    call(weights(name))
    assert not [path for path in hub[1] if any(path.split("?")[0].endswith(file) for file in LAYOUTS[name])]


def test_the_description_comes_without_weights_at_the_commit_of_its_revision(call):
    named, default = call(["fetch_description", "acme/tiny", "sharded"], ["fetch_description", "acme/tiny", None])
    assert (named["commit"], default["commit"]) == (COMMIT["sharded"], COMMIT["one"])
    small = ["chat_template.jinja", "config.json", "tokenizer.json"]
    assert named["files"] == sorted([*small, "model.safetensors.index.json"])
    assert default["files"] == small


@pytest.mark.parametrize("changes", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_connection_the_cache_serves(call, changes):
    """Offline by wish, or the hub is gone: what was fetched once is there, by revision and by commit."""
    description = ["fetch_description", "acme/tiny", "one"]
    online = call(description, weights("one"))
    cached = call(description, weights("one"), **changes)
    assert [answer["commit"] for answer in cached] == [COMMIT["one"], None]
    assert [answer["files"] for answer in cached] == [online[1]["files"]] * 2, "all that was fetched, and no less"


def test_without_a_connection_and_a_copy_it_says_so(call):
    description = ["fetch_description", "acme/tiny", "one"]
    (offline,) = call(description, HF_HUB_OFFLINE="1")
    assert "neither a local folder nor reachable" in offline["error"]
    assert offline["hint"] == "HF_HUB_OFFLINE is set"
    (gone,) = call(description, HF_ENDPOINT="http://127.0.0.1:9")
    assert gone["hint"] == "check the name and the network"


def test_weights_that_cannot_be_fetched_are_an_error_of_ours(call):
    (failed,) = call(weights("one"), HF_HUB_OFFLINE="1")
    assert failed["error"].startswith("the weights of 'acme/tiny' cannot be fetched: ")
    assert failed["hint"] == "check the network and the disk"
