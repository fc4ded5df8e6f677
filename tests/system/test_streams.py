"""stdout holds the result alone, whatever libraries print; and threads that wait sleep."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from indexcache.commands.job import start
from indexcache.system.exits import prints_to_stderr, result_alone

# Prints past Python, with and without C's buffer, from a program that it starts, and from Python.
NOISE = """
import ctypes, os, subprocess, sys
from indexcache import cli
from indexcache.dsa.checkpoint.sizes import count

sizes = count.measure_sizes

def noisy(*given):
    ctypes.CDLL(None).puts(b"C, when its buffer is full")
    os.write(1, b"C, at once\\n")
    subprocess.run(["echo", "a program"], check=True)
    print("Python")
    return sizes(*given)

count.count_sizes, count.measure_sizes = lambda checkpoint: None, noisy  # on modules, for which PyTorch is loaded
cli.main()
"""


def run(*arguments, program=("-m", "indexcache.cli"), **variables):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | variables
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def noisy():
    """An inspection of the embedded model among prints of all kinds, which also says how OpenMP is set."""
    return run("inspect", "recipes/tiny", "--json", program=("-c", NOISE), MKL_VERBOSE="1", OMP_DISPLAY_ENV="true")


def test_stdout_is_one_document_whatever_libraries_print(noisy):
    assert noisy.returncode == 0, noisy.stderr
    assert json.loads(noisy.stdout)["model"] == "recipes/tiny"
    for words in ("C, when its buffer is full", "C, at once", "a program", "Python"):
        assert words in noisy.stderr


def test_openmp_hears_that_waiting_threads_sleep(noisy):
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in noisy.stderr


SAYS = "import os, sys; from {module} import main; sys.argv[1:] = ['--version']\ntry: main()\n" + (
    "finally: print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules, file=sys.stderr)"
)


@pytest.mark.parametrize("module", ["indexcache.__main__", "indexcache.cli"])
def test_a_users_own_policy_wins(module):
    program = ("-c", SAYS.format(module=module))
    assert run(program=program).stderr.split() == ["PASSIVE", "False"]
    assert run(program=program, OMP_WAIT_POLICY="active").stderr.split() == ["active", "False"]


def test_a_library_that_is_imported_sets_nothing():
    said = run(program=("-c", "import os, indexcache, indexcache.cli; print(os.environ.get('OMP_WAIT_POLICY'))"))
    assert said.stdout.strip() == "None"


def test_streams_are_given_back(capfd):
    before = sys.stdout
    with result_alone():
        print("the result")
        os.write(1, b"beside\n")
        with prints_to_stderr():
            print("a library")
    os.write(1, b"after\n")
    ctypes.CDLL(None).fflush(None)
    out, err = capfd.readouterr()
    assert sys.stdout is before
    assert (out.split("\n"), err.split("\n")) == (["the result", "after", ""], ["beside", "a library", ""])


HEAVY = ("torch", "transformers", "datasets", "pandas", "sklearn")
FIRST = """
import sys
from indexcache import cli
from indexcache.system import console

def print_first(reporter, line):
    print(line, *(name for name in {heavy} if name in sys.modules), file=sys.stderr)
    raise SystemExit(7)

def doing(reporter, what):
    print_first(reporter, what)

console.Reporter._print, console.Reporter.doing = print_first, doing
cli.main()
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("search", "--recipe", "tiny", "--keep", "0.25", "--out", "nowhere"),
            "loading PyTorch and transformers",
        ),
        (("inspect", "recipes/tiny"), "reading recipes/tiny"),
    ],
)
def test_the_first_line_comes_before_anything_heavy(arguments, line):
    done = run(*arguments, program=("-c", FIRST.format(heavy=HEAVY)))
    assert (done.returncode, done.stderr) == (7, f"{line}\n")
    assert not Path("nowhere").exists()


def test_it_is_set_only_while_that_helps(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    start.share_cores()  # torch is imported here
    assert "OMP_WAIT_POLICY" not in os.environ
