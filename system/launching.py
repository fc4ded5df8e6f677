"""What a launcher's variables say: which of several processes this is, and where they meet."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..errors import SettingError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How MPI launchers begin their variables. Their processes meet where MASTER_ADDR says, as accelerate has it.
_MPI = ("OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")
_READ_ELSEWHERE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", *(f"{begin}SIZE" for begin in _MPI))
_UNSET = "run it with accelerate launch or torchrun, which set them; alone, unset RANK and WORLD_SIZE first"


@dataclass(frozen=True)
class Launch:
    """This process among several.

    Args:
        rank: its number, from 0, which is the main one's.
        count: how many work together, two or more.
        local_rank: its number on this machine.
        host: where they meet.
        port: likewise.
    """

    rank: int
    count: int
    local_rank: int
    host: str
    port: int


# How long a process looks for the main one before it takes the variables for an earlier job's.
_LOOK_SECONDS, _RETRY_SECONDS = 3.0, 0.1


class _Separation:
    """Whether this process does its job without the others that were launched beside it."""

    is_apart = False
    # What the main process listens on while it works apart, so that the others see it.
    listener: socket.socket | None = None


def work_apart(apart: bool = True) -> None:
    """Has ``current_launch`` say from now on that this process works alone: the others have left."""
    _Separation.is_apart = apart
    if not apart and _Separation.listener is not None:
        _Separation.listener.close()
        _Separation.listener = None


def current_launch() -> Launch | None:
    """Which process this is of several that were launched together; None where it works alone.

    Raises:
        SettingError: the variables are incomplete, or no numbers that go together; names them.
    """
    variables = _from_mpi() | {name: os.environ[name] for name in (*_NEEDED, "LOCAL_RANK") if name in os.environ}
    if _Separation.is_apart or not (variables.keys() & {"RANK", "WORLD_SIZE"}):
        return None
    if missing := [name for name in _NEEDED[:2] if name not in variables]:
        present = next(name for name in _NEEDED[:2] if name in variables)
        what = f"{present} is {variables[present]!r} in the environment and {missing[0]} is not set"
        raise SettingError(what, hint=_UNSET)
    count = _number(variables, "WORLD_SIZE", 1, None)
    rank = _number(variables, "RANK", 0, count - 1)
    if count == 1:
        return None
    if missing := [name for name in _NEEDED if not variables.get(name)]:
        raise SettingError(f"WORLD_SIZE is {count} in the environment and {missing[0]} is not set", hint=_UNSET)
    port = _number(variables, "MASTER_PORT", 1, 65535)
    local = _number(variables, "LOCAL_RANK", 0, None) if "LOCAL_RANK" in variables else rank
    return Launch(rank, count, local, variables["MASTER_ADDR"], port)


def is_one_of_several() -> bool:
    """Whether ``current_launch`` has something to say; variables that are wrong count as nothing."""
    try:
        return current_launch() is not None
    except SettingError:
        return False


def speaks() -> bool:
    """Whether this is the process, of several under ``accelerate launch``, that prints."""
    try:
        launch = current_launch()
    except SettingError:  # each such process ends with it
        return True
    return launch is None or launch.rank == 0


def main_process_answers(launch: Launch) -> bool:
    """Whether anybody listens where the processes of ``launch`` meet.

    The agent of ``torchrun`` and ``accelerate launch`` does as long as the job lives, and the main process does
    while it works, together (its store) or apart (``listen_as_main``). Variables that an earlier job left lead to
    nobody. Looks for a few seconds, since processes start one after another.
    """
    end = time.monotonic() + _LOOK_SECONDS
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((launch.host, launch.port), timeout=left):
                return True
        except socket.gaierror:  # no such host
            return False
        except OSError:
            time.sleep(_RETRY_SECONDS)
    return False


def listen_as_main(launch: Launch) -> None:
    """Lets the others see that the main process is there; where its launcher's agent listens, that is enough."""
    with suppress(OSError, OverflowError):
        _Separation.listener = socket.create_server(("", launch.port), backlog=launch.count)


def unconnected_launcher() -> str | None:
    """What an MPI launcher says of several processes without saying how they would meet; None where none does."""
    if "WORLD_SIZE" in os.environ or _mpi_prefix() is not None:
        return None
    for prefix in _MPI:
        name = f"{prefix}SIZE"
        size = os.environ.get(name, "1").strip()
        if size not in ("", "0", "1"):
            missing = "MASTER_ADDR" if not os.environ.get("MASTER_ADDR") else f"{prefix}RANK"
            return (
                f"{name} is {size} and {missing} is not set"
                if size.isdecimal()
                else f"{name} is {size!r}, no number"
            )
    return None


def launch_variables() -> list[str]:
    """The variables from which libraries would take it that this process does not work alone."""
    return [name for name in _READ_ELSEWHERE if name in os.environ]


def _from_mpi() -> dict[str, str]:
    """The variables as ``mpirun`` gives them, where an address to meet at is given too."""
    prefix = _mpi_prefix()
    if prefix is None:
        return {}
    local = os.environ.get(f"{prefix}LOCAL_RANK", os.environ.get("MPI_LOCALRANKID"))
    variables = {"RANK": os.environ[f"{prefix}RANK"], "WORLD_SIZE": os.environ[f"{prefix}SIZE"]}
    return variables | {"MASTER_PORT": "29500"} | ({} if local is None else {"LOCAL_RANK": local})


def _mpi_prefix() -> str | None:
    """How the variables begin by which an MPI launcher says which process this is, where they are whole."""
    if not os.environ.get("MASTER_ADDR") or "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return None
    return next((name for name in _MPI if {f"{name}RANK", f"{name}SIZE"} <= os.environ.keys()), None)


def _as_set(name: str) -> str:
    """``name`` as the launcher spells it."""
    prefix = _mpi_prefix()
    spelled = f"{prefix}{name.removeprefix('WORLD_')}"
    return spelled if prefix is not None and spelled in os.environ else name


def _number(variables: Mapping[str, str], name: str, least: int, most: int | None) -> int:
    try:
        number = int(variables[name])
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        # A rank is held to the size that goes with it.
        allowed = f"a number from {least}" + ("" if most is None else f" to {most}")
        beside = f" where {_as_set('WORLD_SIZE')} is {variables['WORLD_SIZE']}" if name == "RANK" else ""
        what = f"{_as_set(name)} is {variables[name]!r} in the environment: it has to be {allowed}{beside}"
        raise SettingError(what, hint=_UNSET)
    return number
