"""How a command starts: alone or among others, and with a word before its libraries are imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from ...errors import SettingError, warning, wrapped
from ...system.exits import prints_to_stderr
from ...system.files import find_path
from ...system.launching import (
    Launch,
    current_launch,
    listen_as_main,
    main_process_answers,
    speaks,
    unconnected_launcher,
    work_apart,
)

if TYPE_CHECKING:
    from ...system.console import Reporter

_LOADING = "loading PyTorch and transformers"


def leave_to_main() -> None:
    """Leaves a command that is one process's job to the main one of several, which does it as if alone.

    Where nobody answers at the place to meet, an earlier job left the variables, and this process does it.
    """
    launch = _launch_or_none()
    if launch is not None and launch.rank == 0:
        listen_as_main(launch)
    elif launch is not None:
        place = f"{launch.host}:{launch.port} (MASTER_ADDR, MASTER_PORT)"
        this = f"process {launch.rank} of {launch.count}"
        if main_process_answers(launch):
            line = f"{this}: left to process 0, as somebody listens at {place}; alone, unset RANK and WORLD_SIZE"
            typer.echo(wrapped(line, sys.stderr), err=True)
            raise typer.Exit
        warn_before_start(
            f"{this}, say RANK and WORLD_SIZE, but nobody answers at {place}: this process does it alone; unset "
            "them where an earlier job left them"
        )
    work_apart()


def _launch_or_none() -> Launch | None:
    """Which of several processes this is; None too where they are wrong, which it does not mind alone."""
    try:
        return current_launch()
    except SettingError:
        return None


@contextmanager
def working(quiet: bool, loads_model: bool = True, loads_libraries: bool = True) -> Iterator[Reporter]:
    """Says what goes on while a command works, from before its libraries are imported.

    A command that loads a model says first, once, that versions here are none that was tested.

    Args:
        quiet: whether only warnings are said.
        loads_model: whether the command loads one.
        loads_libraries: whether PyTorch and transformers are needed in any case; else ``load_libraries`` follows
            where they are.
    """
    together = current_launch() is not None  # wrong variables are told of at once
    quieten()
    from ...system.console import Reporter
    from ...system.versions import untested_versions

    main = speaks()
    # The bar's end gives back the stdout that it met.
    with prints_to_stderr(), Reporter(quiet=quiet or not main, main=main, is_first=_is_first) as reporter:
        if loads_libraries:
            reporter.doing(_LOADING)
        if loads_model and main and (line := untested_versions()):
            reporter.warn(line)
        if (incomplete := unconnected_launcher()) is not None:
            reporter.warn(
                f"{incomplete}: this process works alone; to share the work, use accelerate launch or torchrun"
            )
        if loads_libraries:
            _import_transformers()
        if together:
            from ...system.processes import process_count

            process_count()  # they meet first of all
        yield reporter


def load_libraries(reporter: Reporter) -> None:
    """Says that PyTorch and transformers are loaded, which takes seconds, and makes them quiet."""
    reporter.doing(_LOADING)
    _import_transformers()


def _import_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _is_first(line: str) -> bool:
    from ...system.processes import is_first

    return is_first(line)


def quieten() -> None:
    """Keeps the libraries' own progress bars and advice off stderr unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def reach(model: str | None, revision: str | None) -> None:
    """Asks for a hub model before libraries are loaded that take seconds: a name that is none is told at once."""
    if model and find_path(model) is None:
        quieten()
        from ...dsa.checkpoint.hub import locate_checkpoint

        locate_checkpoint(model, revision)


def warn_before_start(line: str) -> None:
    """Warns on stderr where a command has no reporter."""
    typer.echo(wrapped(warning(line, __name__), sys.stderr), err=True)


def share_cores() -> None:
    """Has threads that wait for each other sleep, unless the user set it: else they take cores from who works.

    OpenMP reads it as torch is imported.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
