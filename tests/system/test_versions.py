"""Versions: one list that pyproject.toml, the runs of the tests and the warning agree on."""

import re
import tomllib
from importlib.metadata import version

import pytest
import run_versions
from packaging.requirements import Requirement
from packaging.version import Version
from random_models import EMBEDDED, ROOT

from indexcache.system import versions
from indexcache.system.versions import TESTED, untested_versions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RANGES = {requirement.name: requirement.specifier for requirement in map(Requirement, PROJECT["dependencies"])}


def test_ranges_begin_at_the_lowest_that_was_tested():
    lowest, newest = map(Version, TESTED["python"])
    assert PROJECT["requires-python"] == f">={lowest},<{newest.major}.{newest.minor + 1}"
    for name in ("torch", "transformers"):
        lowest, newest = map(Version, TESTED[name])
        assert str(RANGES[name]) == f"<{newest.major + 1},>={lowest}"
        assert lowest <= newest


def test_every_range_ends_below_the_next_major_version():
    for name, specifier in RANGES.items():
        (end,) = (Version(bound.version) for bound in specifier if bound.operator == "<")
        assert end.release == (Version(version(name)).major + 1,), f"{name}{specifier}"
        assert any(bound.operator == ">=" for bound in specifier), name


def test_what_is_pinned_was_tested():
    pins = dict(re.findall(r"^(\w+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    for name in pins.keys() & RANGES.keys():
        assert pins[name] in RANGES[name]
    for name in pins.keys() & TESTED.keys():
        assert Version(TESTED[name][0]) <= Version(pins[name]) <= Version(TESTED[name][1])


def test_the_makefile_and_ci_write_no_version_a_second_time():
    for path in ("Makefile", ".ci/run", "tests/run_versions.py"):
        assert not re.search(r"\b5\.\d+\.\d+\b", (ROOT / path).read_text("utf-8")), path
    assert re.search(r"^make .*\btest-newest$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)


def test_the_runs_of_the_tests_name_files_that_are_there():
    assert all((ROOT / path).is_file() for path in run_versions.TESTS)


@pytest.mark.parametrize(
    ("passes", "python", "said", "code"),
    [
        (True, True, "all versions pass", 0),
        (True, None, "not run: Python", 1),
        (True, False, "failed with Python", 1),
        (False, True, "failed with transformers", 1),
        (False, None, "failed with transformers", 1),
    ],
)
def test_all_versions_pass_only_where_all_ran(passes, python, said, code, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_versions.py"])
    monkeypatch.setattr(run_versions, "passes", lambda *arguments: passes)
    monkeypatch.setattr(run_versions, "newest_python_tested", lambda wanted: python)
    assert run_versions.main() == code
    printed = capsys.readouterr().out
    assert said in printed
    assert ("all versions pass" in printed) == (code == 0)


def test_a_python_that_does_not_run_is_none(tmp_path, monkeypatch):
    shim = tmp_path / f"python{run_versions.NEWEST_PYTHON}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_versions.interpreter(None) is None
    assert run_versions.newest_python_tested(None) is None


class TestTheWarning:
    @pytest.fixture
    def here(self, monkeypatch):
        def use(**changes):
            tested = {name: newest for name, (_, newest) in TESTED.items()} | changes
            monkeypatch.setattr(versions, "library_versions", lambda: tested)

        return use

    @pytest.mark.parametrize("index", [0, 1])
    def test_says_nothing_of_the_ends_of_the_tested_range(self, here, index):
        here(**{name: ends[index] for name, ends in TESTED.items()})
        assert untested_versions() is None

    def test_says_nothing_of_builds_and_patches(self, here):
        newest = Version(TESTED["torch"][1])
        here(torch=f"{newest.major}.{newest.minor}.{newest.micro + 3}+cpu", python=f"{TESTED['python'][1]}.99")
        assert untested_versions() is None

    @pytest.mark.parametrize("release", ["5.11.0", "5.99.0", "6.0.0.dev0"])
    def test_names_what_is_outside(self, here, release):
        here(transformers=release)
        assert untested_versions().startswith(
            f"not tested with transformers {release} (tested: {TESTED['transformers'][0]} to"
        )

    @pytest.mark.parametrize("arguments", [["--quiet"], []], ids=str)
    def test_is_one_line_of_commands_that_load_a_model(self, here, run_cli, arguments):
        here(transformers="5.99.0")
        options = ["--model", EMBEDDED, "--keep", "0.5", "--window", "64"]
        _, _, err = run_cli("estimate", *options, *arguments)
        assert err.count("not tested with transformers 5.99.0") == 1
        _, _, err = run_cli("estimate", "--no-time", *options, *arguments)
        assert "not tested" not in err

    def test_is_said_by_one_process_of_several(self, here, run_cli, monkeypatch):
        here(transformers="5.99.0")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setattr("indexcache.commands.estimate.estimate", lambda *args: 1 / 0)
        _, _, err = run_cli("estimate", "--model", EMBEDDED, "--keep", "0.5")
        assert "not tested" not in err
