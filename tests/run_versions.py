"""Runs the tests that releases of libraries can break, on the ends of the ranges that pyproject.toml allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from indexcache.system.versions import NEWEST_PYTHON, TESTED

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "versions"
TESTS = [f"tests/dsa/test_{name}.py" for name in ("families_contract", "applied", "long_windows", "fastcheck")]
# About a minute: every family's caches, chunks and gathering, and the contract of three kinds of selections.
QUICK = "test_applied or mixed or Names or (test_families_contract and (glm_moe_dsa or deepseek_v4 or qwen4_exp))"


def pinned() -> str:
    """The transformers that ``constraints.txt`` names, which ``make test`` runs."""
    found = re.search(r"^transformers==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert found, "constraints.txt pins no transformers"
    return found[1]


def installed(release: str) -> str:
    """A folder with this transformers and what it needs, to be put before what is installed; no torch."""
    folder = PLACE / f"transformers-{release}"
    if not (folder / ".installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(folder), f"transformers=={release}"], check=True)
        (folder / ".installed").touch()
    return str(folder)


def tested(release: str, arguments: list[str]) -> bool:
    """Whether the tests pass with this transformers."""
    print(f"== transformers {release}, Python {sys.version.split()[0]}", flush=True)
    before = [] if release == pinned() else [installed(release)]
    paths = os.pathsep.join([*before, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode == 0


def main() -> int:
    """All ends, or with ``--newest`` a part of the tests on the newest transformers."""
    lowest, newest = TESTED["transformers"]
    if "--newest" in sys.argv:
        return not tested(newest, [*TESTS, "-k", QUICK])
    failed = [
        each for each in dict.fromkeys((lowest, pinned(), newest)) if not tested(each, [*TESTS, "tests/search"])
    ]
    if TESTED["python"][1] != NEWEST_PYTHON:
        print(f"not run: Python {NEWEST_PYTHON}, for which no CPU build of torch was to be had")
    print(f"failed with transformers {', '.join(failed)}" if failed else "all versions pass")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
