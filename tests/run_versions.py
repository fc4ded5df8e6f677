"""Runs the tests that releases of libraries can break, on the ends of the ranges that pyproject.toml allows."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from layered_venv import layered

from indexcache.system.versions import TESTED

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "versions"
TESTS = [
    f"tests/dsa/{name}.py"
    for name in (
        "test_families_contract",
        "model/test_applied",
        "long/test_long_windows",
        "checks/test_fastpath",
        "checkpoint/sizes/test_count",
        "stream/test_load",
        "stream/test_quantised_losses",
        "distil/test_targets",
    )
]
# About a minute: every family's chunks and sizes, the names of caches, and two kinds of selections.
_FAMILIES = "(glm_moe_dsa or qwen4_exp)"
QUICK = (
    f"mixed or Names or every_family_is_counted or (test_applied and {_FAMILIES}) or "
    f"(test_families_contract and {_FAMILIES})"
)
_LOWEST_PYTHON, NEWEST_PYTHON = TESTED["python"]


def pinned() -> str:
    """The transformers that ``constraints.txt`` names, which ``make test`` runs."""
    pin = re.search(r"^transformers==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pin, "constraints.txt pins no transformers"
    return pin[1]


def with_transformers(release: str) -> str:
    """The interpreter of an environment over this one, that holds this transformers and what else it needs."""
    return layered(PLACE / f"transformers-{release}", [[f"transformers=={release}"]])


def interpreter(wanted: str | None) -> str | None:
    """A Python of the newest tested release that runs: ``wanted``, or the one on PATH; None if there is none."""
    command = wanted or shutil.which(f"python{NEWEST_PYTHON}")
    if command is None:
        return None
    ask = [command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return command if answer.stdout.strip() == NEWEST_PYTHON else None


def prepared(command: str) -> str:
    """The interpreter if it has what the tests need, else one of a venv that is made with it.

    Where no wheel of torch for CPUs is to be had, pip fetches the one for GPUs, some 3 GB.
    """
    ready = [command, "-c", "import indexcache, torch, transformers, pytest, hypothesis"]
    if subprocess.run(ready, capture_output=True, check=False).returncode == 0:
        return command
    folder = PLACE / f"python-{NEWEST_PYTHON}"
    python = str(folder / "bin" / "python")
    if not (folder / ".installed").exists():
        subprocess.run([command, "-m", "venv", str(folder)], check=True)
        # A torch for GPUs brings a triton of its own.
        pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pin for pin in pins if not pin.startswith("triton")) + "\n", "utf-8")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), "-e", f"{ROOT}[dev]"], check=True)
        (folder / ".installed").touch()
    return python


def passes(release: str, arguments: list[str], python: str | None = None) -> bool:
    """Whether the tests pass with this transformers, on ``python`` or on the one that runs this."""
    if python is None:
        python = sys.executable if release == pinned() else with_transformers(release)
    print(f"== transformers {release}, {python}", flush=True)
    # Not where the suite, which may run at the same time, has tests about permissions.
    PLACE.mkdir(parents=True, exist_ok=True)
    places = ["-p", "no:cacheprovider", "--basetemp", str(PLACE / "temporary")]
    command = [python, "-m", "pytest", "-q", *places, *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def newest_python_tested(wanted: str | None) -> bool | None:
    """Whether the tests pass on the newest tested Python; None where there is none to run."""
    command = interpreter(wanted)
    return None if command is None else passes(pinned(), TESTS, prepared(command))


def main() -> int:
    """All ends, or with ``--newest`` a part of the tests on the newest transformers; 0 if all ran and passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--newest", action="store_true", help="a part of the tests, on the newest transformers")
    parser.add_argument("--python", metavar="PATH", help=f"a Python {NEWEST_PYTHON} [the one on PATH]")
    options = parser.parse_args()
    lowest, newest = TESTED["transformers"]
    if options.newest:
        return not passes(newest, [*TESTS, "-k", QUICK])
    releases = dict.fromkeys((lowest, pinned(), newest))
    failed = [f"transformers {release}" for release in releases if not passes(release, [*TESTS, "tests/search"])]
    passed = newest_python_tested(options.python) if NEWEST_PYTHON != _LOWEST_PYTHON else True
    if passed is False:
        failed.append(f"Python {NEWEST_PYTHON}")
    if failed:
        print(f"failed with {', '.join(failed)}")
    if passed is None:
        print(f"not run: Python {NEWEST_PYTHON}, which is not on PATH; name one with --python")
    elif not failed:
        print("all versions pass")
    return bool(failed) or passed is None


if __name__ == "__main__":
    sys.exit(main())
