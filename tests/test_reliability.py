"""The reliability table: cases are counted wherever a test runs, and what failed or never ran is marked."""

import os
import re
import subprocess
import sys

import pytest
from random_models import ROOT

FIRST = """
import pytest

@pytest.mark.reliability("R1", "R2")
def test_three_cases(cases):
    for _ in range(3):
        cases.check(True, "")

@pytest.mark.reliability("R2")
def test_one_case():
    pass
"""
SECOND = """
import os
import pytest

@pytest.mark.reliability("R1")
def test_two_more(cases):
    cases.check(True, "")
    cases.check(True, "")

@pytest.mark.reliability("R3")
def test_one_of_two_fails(cases):
    cases.check(True, "")
    cases.check(False, "the second")

@pytest.mark.torture
@pytest.mark.reliability("R4")
def test_slow():
    pass

@pytest.mark.reliability("R5")
def test_none_counted(cases):
    pass
"""

PLUGINS = ("-p", "reliability", "-p", "xdist", "-p", "no:cacheprovider")
# All other plugins that are installed would be imported by every process.
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "tests"), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def table(tmp_path):
    """Runs two files of tests: the exit code, and a row (run, passed, whether it is marked) by requirement."""
    (tmp_path / "test_first.py").write_text(FIRST)
    (tmp_path / "test_second.py").write_text(SECOND)

    def run(*options):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *PLUGINS, *options, "."],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        rows = re.findall(r"^(R\d+) .* (\d+) run +(\d+) passed( +<--)?$", done.stdout, re.MULTILINE)
        return done.returncode, {name: (int(ran), int(passed), bool(mark)) for name, ran, passed, mark in rows}

    return run


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist", "worksteal")], ids=["one process", "two workers"])
def test_it_counts_every_case(table, workers):
    code, rows = table("--torture", *workers)
    assert code == 1
    expected = {
        "R1": (5, 5, False), "R2": (4, 4, False), "R3": (2, 1, True), "R4": (1, 1, False), "R5": (1, 0, True),
        "R6": (0, 0, True),
    }  # fmt: skip
    assert {name: rows[name] for name in expected} == expected


def test_slow_tests_wait_for_torture(table):
    code, rows = table()
    assert (code, rows) == (1, {})
    _, rows = table("--torture", "-k", "slow")
    assert rows["R4"] == (1, 1, False)
