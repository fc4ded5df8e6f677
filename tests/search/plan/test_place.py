"""A plan's name: a file, a folder, or a repository on a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from local_hub import serving

from indexcache.errors import PlanError
from indexcache.search.plan.file import plan_file


@pytest.fixture(scope="module")
def hub(searched, tmp_path_factory):
    """A hub whose main branch holds a plan, and whose v1 holds none."""
    folder, other = tmp_path_factory.mktemp("main"), tmp_path_factory.mktemp("v1")
    for name in ("plan.json", "windows.safetensors", "card.md"):
        shutil.copy(searched / name, folder / name)
    (other / "README.md").write_text("nothing")
    asked = []
    with serving({"a" * 40: folder, "b" * 40: other}, asked) as address:
        yield address, asked


@pytest.fixture
def run(hub, tmp_path):
    def run(*arguments, offline="0"):
        environment = {**os.environ, "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": offline, "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "indexcache.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    return run


def test_a_repository_is_copied_here_and_then_needs_no_hub(run, hub, searched, tmp_path):
    done = run("export", "acme/tiny", "--to", "none", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads((searched / "plan.json").read_text())
    assert json.loads(done.stdout)["pattern"] == plan["result"]["layer_pattern"]
    folder = tmp_path / "outputs" / "hub" / "acme" / "tiny" / ("a" * 12)
    assert {path.name for path in folder.iterdir()} == {"plan.json", "windows.safetensors"}
    done = run("cut", "acme/tiny", "--keep", 0.25, offline="1")
    assert done.stdout.strip() == str(folder.relative_to(tmp_path) / "plan-2of8.json"), done.stderr


def test_what_the_hub_does_not_have_is_one_line(run_cli, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub[0])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, says in {
        "acme/tiny@v1": "holds no plan.json",
        "acme/tiny@v9": "no revision 'v9'",
        "acme/none": "nor on the hub",
    }.items():
        code, out, err = run_cli("export", name, "--to", "none")
        assert (code, out, len(err.splitlines())) == (2, "", 1), name
        assert says in err


def test_what_is_here_is_never_asked_for(tmp_path, monkeypatch):
    """Without a hub each of them would fail: tests are offline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    assert plan_file(Path("outputs/run")) == Path("outputs/run/plan.json")
    assert plan_file(Path("outputs/gone")) == Path("outputs/gone")
    assert plan_file(Path("elsewhere/plan.json")) == Path("elsewhere/plan.json")
    assert plan_file(Path("a/b/c")) == Path("a/b/c")
    with pytest.raises(PlanError, match="nor reachable on the hub"):
        plan_file(Path("acme/tiny@main"))
