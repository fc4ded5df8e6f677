"""Shares windows out over accelerate's processes and brings their losses back together."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import IndexcacheError, LostProcessError, first_line
from .launching import Launch, current_launch
from .rendezvous import Meeting, launch_environment
from .signals import Stop

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)


class _Membership:
    """Where this process met the others that it was launched with; None before, and where it works alone."""

    meeting: Meeting | None = None


def _state() -> Any:
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without cpu=True accelerate does not connect processes that have no accelerator.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if PartialState._shared_state or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return PartialState(cpu=cpu)
    launch = current_launch()
    with launch_environment(launch):
        return PartialState(cpu=cpu) if launch is None else _join(launch, cpu)


def _join(launch: Launch, cpu: bool) -> Any:
    """accelerate's state once all processes are connected.

    Raises:
        SettingError: they are not in time.
    """
    import torch
    from accelerate import PartialState

    meeting = Meeting(launch)

    def enter(store: Any) -> tuple[Any, int, set[int]]:
        # The others wait while the main process hashes a checkpoint or streams a dataset.
        state = PartialState(cpu=cpu, timeout=_PATIENCE, store=store, rank=launch.rank, world_size=launch.count)
        return state, torch.get_num_threads(), _affinity()

    state, threads, cores = meeting.join(enter)
    _Membership.meeting = meeting
    # All three are a thread's, and another one entered.
    torch.set_num_threads(threads)
    if cores != _affinity():
        os.sched_setaffinity(0, cores)
    if state.device.type != "cpu" and state.device.index is not None:
        torch.accelerator.set_device_index(state.device.index)
    return state


def _affinity() -> set[int]:
    """The cores that this thread may run on, which ACCELERATE_CPU_AFFINITY narrows."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def is_first(line: str) -> bool:
    """Whether no other of the processes that work together has said ``line``."""
    return _Membership.meeting is None or _Membership.meeting.is_first(line)


def process_device() -> Any:
    """The device that accelerate gives this process."""
    import torch

    device = _state().device
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # streams and events ask for the number
    # Among several processes accelerate says "cpu:0", to which a model would be copied: to memory aligned
    # otherwise, so that its products are rounded otherwise.
    return torch.device("cpu") if device.type == "cpu" else device


def thread_count() -> int | None:
    """How many threads share a matrix product here, which decides its rounding; None on an accelerator."""
    import torch

    return torch.get_num_threads() if process_device().type == "cpu" else None


def use_threads(count: int | None) -> None:
    """Computes on ``count`` threads from now on, where that matters: losses are then those of an earlier run."""
    import torch

    if count is not None and thread_count() is not None:
        torch.set_num_threads(count)


def process_count() -> int:
    """How many processes work together."""
    return int(_state().num_processes)


def host_count() -> int:
    """How many hosts the processes that work together are on; as launchers say, which start as many on each."""
    return max(1, process_count() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return bool(_state().is_main_process)


def process_index() -> int:
    """This process's number, from 0."""
    return int(_state().process_index)


def merge(part: dict[int, T]) -> dict[int, T]:
    """The parts that the processes hold, by number, together on every process."""
    from accelerate.utils import gather_object

    if process_count() == 1:
        return part
    with _lost_process_as_error():
        return {number: value for share in gather_object([part]) for number, value in share.items()}


def least(number: int) -> int:
    """The least of all processes' numbers; each has to ask."""
    return min(merge({process_index(): number}).values())


def run_on_main(job: Callable[[], T]) -> T:
    """Runs ``job`` on the main process; every process gets its result, or raises its error or the stop it met.

    The error is marked as shared, so that only one process prints it.
    """
    from accelerate.utils import broadcast_object_list

    if process_count() == 1:
        return job()
    outcome: list[Any] = [None, None]  # the result, and the error in its place
    if is_main():
        try:
            outcome[0] = job()
        except (IndexcacheError, Stop) as error:
            outcome[1] = error
        except Exception as error:  # whatever it is, the others must not wait for it
            outcome[1] = IndexcacheError(f"unexpected {type(error).__name__}: {error}")
            if os.environ.get("INDEXCACHE_TRACEBACK"):
                traceback.print_exception(error)
    with _lost_process_as_error():
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        outcome[1].shared = True
        raise outcome[1]
    result: T = outcome[0]
    return result


@contextmanager
def _lost_process_as_error() -> Iterator[None]:
    """Within it, where processes wait for each other, the end of one ends the others in a line.

    Raises:
        LostProcessError: another one is gone.
    """
    try:
        yield
    except RuntimeError as error:  # each transport has its own words
        raise LostProcessError(f"another process of this run was lost: {first_line(error)[:120]}") from error
