"""The folder that a distillation works in: what it is of, and its trained indexers, so that it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..dsa.distil.train import Trained
from ..errors import IdentityError, JournalError, first_line
from ..search.run.records import Identity
from ..system import processes
from ..system.console import Reporter
from ..system.documents import read_json
from ..system.files import is_there, write_atomically
from ..system.locking import locked

IDENTITY_FILE = "distil.json"
_LARGEST_IDENTITY = 1 << 20


class Work:
    """A run's folder while it is not finished.

    Args:
        folder: whose lock is held.
        reporter: told what of the run is there.
    """

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self.folder = folder
        self._reporter = reporter

    def open(self, identity: Identity, sites: list[int]) -> dict[int, Trained]:
        """The indexers of ``sites`` that an earlier start of this very run trained; the same on all processes.

        Raises:
            IdentityError: the folder is of another run; names what differs.
            JournalError: something in it is damaged.
        """
        trained = processes.run_on_main(lambda: self._open(identity, sites))
        if trained:
            self._reporter.say(f"going on from {self.folder}: {len(trained)} of {len(sites)} indexers are trained")
        return trained

    def keep(self, site: int, trained: Trained) -> None:
        """Keeps a trained indexer; each process keeps those that it trained."""
        described = json.dumps({"curve": trained.curve, "learning_rate": trained.learning_rate})
        tensors = {name: value.contiguous() for name, value in trained.parameters.items()}
        write_atomically(self._file(site), save(tensors, metadata={"trained": described}))

    def remove(self) -> None:
        """Removes the folder, once everything that it was for is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, identity: Identity, sites: list[int]) -> dict[int, Trained]:
        path = self.folder / IDENTITY_FILE
        current = json.loads(json.dumps(dict(identity)))
        if is_there(path):
            _check_same(_read_identity(path), current, path)
        else:
            write_atomically(path, json.dumps(current, indent=2) + "\n")
        return {site: _read(self._file(site)) for site in sites if is_there(self._file(site))}

    def _file(self, site: int) -> Path:
        return self.folder / f"indexer-{site}.safetensors"


@contextmanager
def working_in(folder: Path, reporter: Reporter) -> Iterator[Work]:
    """A run's folder, which nobody else writes to meanwhile.

    Raises:
        BusyError: another process holds it.
        OutputError: nothing can be written there.
    """
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(locked(folder, reporter.warn))

        processes.run_on_main(begin)  # so that the main process alone has the lock
        yield Work(folder, reporter)


def kept_count(folder: Path) -> int:
    """How many trained indexers ``folder`` holds."""
    return len(list(folder.glob("indexer-*.safetensors"))) if is_there(folder) else 0


def _read_identity(path: Path) -> dict[str, Any]:
    document = read_json(path, JournalError, _LARGEST_IDENTITY)
    if not isinstance(document, dict):
        raise JournalError(f"{str(path)!r} is not what distill writes", hint=_begin_anew(path))
    return document


def _check_same(stored: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    for name in (*current, *stored):
        old, new = stored.get(name), current.get(name)
        if old != new:
            raise IdentityError(
                f"{str(path.parent)!r} is of another run of distill: {name} is {_short(new)}, there {_short(old)}",
                hint="run with the old settings to go on, give another --out, or remove that folder",
            )


def _short(value: object) -> str:
    return str(value)[:12] if len(str(value)) == 64 else str(value)


def _begin_anew(path: Path) -> str:
    return f"remove {str(path.parent)!r} to begin anew"


def _read(path: Path) -> Trained:
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["trained"])
            names = list(file.keys())
            parameters: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in names}
        curve = tuple((int(step), float(divergence)) for step, divergence in described["curve"])
        return Trained(parameters, curve, float(described["learning_rate"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise JournalError(
            f"{str(path)!r} cannot be read: {first_line(error)}", hint="remove it: that indexer is trained again"
        ) from error
