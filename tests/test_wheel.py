"""The wheel: built from the tracked files, installed outside the repository and run in another folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from random_models import ROOT
from test_layout import PACKAGED, tracked

from indexcache import __version__
from indexcache.errors import PAGE

# Two commands in one process: importing torch takes most of the time of either.
COMMANDS = """
import contextlib, io, json, sys
import indexcache
from indexcache.cli import main
outs = [indexcache.__file__]
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments)
        except SystemExit as stop:
            assert not stop.code, arguments
    outs.append(out.getvalue())
print(json.dumps(outs))
"""


SMALL = ("--window", "96", "--windows", "1", "--heldout", "1")


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tracked files, so that nothing else here can get into what is built."""
    folder = tmp_path_factory.mktemp("source")
    for path in tracked():
        if path.parts[0] != "tests" or path.suffix == ".py":
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    return folder


def built_wheel(source, out):
    """The wheel built from a folder or an sdist."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source])
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """A wheel of the tracked files."""
    return built_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed into."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel])
    return target


def test_it_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as content:
        held = {name for name in content.namelist() if ".dist-info/" not in name}
    shipped = {path for path in PACKAGED if path.suffix == ".py" or len(path.parts) > 1 or path.name == "py.typed"}
    shipped = {path for path in shipped if path.parts[0] != ".ci"} | {Path(PAGE)}
    assert held == {f"indexcache/{path.as_posix()}" for path in shipped}
    for name in ("recipes/tiny.yaml", "recipes/tiny/model.safetensors", "search/report/templates/report.html.j2"):
        assert f"indexcache/{name}" in held


@pytest.mark.torture
def test_the_sdist_gives_the_same_wheel(source, wheel, tmp_path):
    """``make package`` builds both as users would, with a network, and runs them on other Pythons."""
    command = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    name = run([sys.executable, "-c", command], cwd=source).splitlines()[-1]
    again = built_wheel(tmp_path / name, tmp_path)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        contents = [{name: file.read(name) for name in file.namelist()} for file in (first, second)]
    assert contents[0].keys() == contents[1].keys()
    differing = [name for name in contents[0] if contents[0][name] != contents[1][name]]
    assert not differing


def test_it_runs_outside_the_repository(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    version = run([installed / "bin" / "indexcache", "--version"], cwd=tmp_path, env=environment)
    assert version == f"indexcache {__version__}\n"
    commands = [
        ["inspect", str(installed / "indexcache" / "recipes" / "tiny"), "--json"],
        ["search", "--recipe", "tiny", "--keep", "0.93", *SMALL, "--selfcheck"],
    ]
    out = run([sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=tmp_path, env=environment)
    place, inspected, searched = json.loads(out.splitlines()[-1])
    assert Path(place).is_relative_to(installed), "what ran is the repository"
    assert json.loads(inspected)["sites"] == 16
    assert searched == "outputs/tiny/plan.json\n"
    plan = json.loads((tmp_path / "outputs" / "tiny" / "plan.json").read_text())
    assert plan["result"]["kept"] == 15
    names = {path.name for path in (tmp_path / "outputs" / "tiny").iterdir()}
    assert {"report.md", "report.html", "curve.svg", "windows.safetensors", "journal.jsonl"} <= names
