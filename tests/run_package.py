"""Builds sdist and wheel, and runs both in empty environments outside the repository, a Python after the other.

    python tests/run_package.py                                the lowest and the newest Python that run here
    python tests/run_package.py python3.11 /opt/3.13/python    these

Each environment gets the wheel with all that it needs, as a user's would, and then the sdist instead of the wheel.
PyTorch is most of what pip fetches: 3 GB where it is built for GPUs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from indexcache.system.versions import TESTED

ROOT = Path(__file__).parent.parent
# A search of some seconds, and what is done with its plan.
COMMANDS = (
    ["--version"],
    ["inspect", "{package}/recipes/tiny"],
    ["search", "--recipe", "tiny", "--keep", "0.5", "--window", "96", "--windows", "2", "--heldout", "1"],
    ["eval", "outputs/tiny/plan.json"],
    ["export", "outputs/tiny/plan.json", "--to", "vllm"],
)


def build(folder: Path) -> list[Path]:
    """The wheel, and the sdist that it is made from, in ``folder``; made in an environment of their own."""
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]


def environment(command: str, folder: Path) -> Path:
    """The folder of programs of an empty environment for the Python ``command``."""
    subprocess.run([command, "-m", "venv", folder / "venv"], check=True)
    return folder / "venv" / "bin"


def try_out(binaries: Path, archive: Path, folder: Path) -> None:
    """Installs ``archive`` and runs it in ``folder``.

    Raises:
        subprocess.CalledProcessError: something does not end well.
    """
    pip = [binaries / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Its dependencies stay where they are there already; the package is the archive's.
    subprocess.run([*pip, "install", archive], check=True)
    subprocess.run([*pip, "install", "--force-reinstall", "--no-deps", archive], check=True)
    where = [binaries / "python", "-c", "import indexcache; print(indexcache.__path__[0])"]
    package = subprocess.run(where, check=True, capture_output=True, text=True, cwd=folder).stdout.strip()
    assert Path(package).is_relative_to(binaries.parent), f"what was imported is {package}"
    shutil.rmtree(folder / "outputs", ignore_errors=True)
    for words in COMMANDS:
        given = [word.format(package=package) for word in words]
        subprocess.run([binaries / "indexcache", *given], check=True, cwd=folder, stdout=subprocess.DEVNULL)


def runs(command: str) -> bool:
    """Whether there is such a Python: a version manager may have a name on PATH for one that it does not run."""
    if shutil.which(command) is None:
        return False
    return subprocess.run([command, "--version"], capture_output=True, check=False).returncode == 0


def main() -> int:
    """Builds, tries out, and says what ran; 0 if each Python that was asked for did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", help="interpreters [the lowest and the newest tested]")
    wanted = parser.parse_args().pythons or [f"python{release}" for release in TESTED["python"]]
    missing = [command for command in wanted if not runs(command)]
    with tempfile.TemporaryDirectory() as place:
        archives = build(Path(place) / "dist")
        for command in (command for command in wanted if command not in missing):
            folder = Path(place) / Path(command).name
            folder.mkdir()
            binaries = environment(command, folder)
            for archive in archives:
                begin = time.monotonic()
                try_out(binaries, archive, folder)
                print(
                    f"{command}, {archive.name}: installed and run, {time.monotonic() - begin:.0f} s", flush=True
                )
            shutil.rmtree(folder)
    for command in missing:
        print(f"{command} is not here: name one, e.g. make package PYTHONS=/opt/python3.13/bin/python")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
