"""The engines that are run: the pinned release of each, its environment, and how its settings are exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        prepare: makes what the environment alone does not have.
    """

    name: str
    version: str
    installs: Sequence[Sequence[str]]
    evidence: Literal["ran", "parsed"] = "ran"
    write: Sequence[str] | None = None
    remark: str = ""
    prepare: Callable[[str], None] | None = None

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
        python = layered(self.place / "venv", self.installs)
        if self.prepare is not None:
            self.prepare(python)
        return python


_NEWEST_TRANSFORMERS = TESTED["transformers"][1]
ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", _NEWEST_TRANSFORMERS, [[f"transformers=={_NEWEST_TRANSFORMERS}"]]),
        Engine(
            "mlx-vlm",
            "0.7.10",
            # What it asks for besides is for pictures, sound and its server.
            [["--no-deps", "mlx-vlm==0.7.10", "mlx-lm==0.32.2", "mlx==0.32.4", "mlx-cpu==0.32.4"], ["requests"]],
            write=["--strip-weights"],
        ),
    )
}
