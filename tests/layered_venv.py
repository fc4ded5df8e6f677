"""Virtual environments over this one: they hold some packages of their own, and find the others here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

# What is imported is compiled then: a small part of it.
_INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--no-compile")


def layered(folder: Path, installs: Sequence[Sequence[str]]) -> str:
    """The interpreter of an environment in ``folder``; made anew where that was made for other ``installs``.

    Args:
        folder: of the environment.
        installs: what pip is given, one list an installation.

    Raises:
        RuntimeError: pip failed; says with what.
    """
    python, done = str(folder / "bin" / "python"), folder / ".installed"
    wanted = "".join(f"{' '.join(arguments)}\n" for arguments in installs)
    if not done.exists() or done.read_text("utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        packages = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
        here = sysconfig.get_path("purelib")
        # Not only on the path: the .pth file of an editable install there is to be read too.
        (Path(packages) / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n", "utf-8")
        for arguments in installs:
            command = [sys.executable, "-m", "pip", "--python", python, *_INSTALL, *arguments]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        done.write_text(wanted, "utf-8")
    return python
