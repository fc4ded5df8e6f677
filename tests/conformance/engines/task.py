"""What a program that runs one engine is given and gives back: files, as it runs in another environment."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Task:
    """One engine's run.

    Args:
        paste: what ``indexcache export`` printed for the engine.
        folder: what ``--write`` left, where the engine takes its settings from config.json.
        source: the engine's source distribution, unpacked, where its release is one.
        place: for what the engine leaves, and for the answer.
    """

    paste: str
    folder: Path | None
    source: Path | None
    place: Path

    @property
    def windows(self) -> np.ndarray:
        """Token ids, [windows, tokens]."""
        return np.load(self.place / "windows.npy")

    def answer(self, version: str, roles: str, logits: np.ndarray | None = None, **more: Any) -> None:
        """Leaves the engine's own roles, a letter per decoder layer, and logits, [windows, tokens, vocabulary]."""
        if logits is not None:
            np.save(self.place / "logits.npy", np.asarray(logits, np.float32))
        document = {"version": version, "roles": roles, "python": platform.python_version(), **more}
        (self.place / "answer.json").write_text(json.dumps(document), "utf-8")


def given() -> Task:
    """The task in the file that the command line names."""
    document = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    folder, source = (document[name] and Path(document[name]) for name in ("folder", "source"))
    return Task(document["paste"], folder, source, Path(sys.argv[1]).parent)
