"""Brings several processes together: says for whom it waits, ends on a signal, and waits for so long only."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, ClassVar

from ..errors import IndexcacheError, SettingError, first_line, one_line
from .launching import Launch, launch_variables
from .signals import Stop

# Processes of one launch start within seconds of each other, on a busy cluster within a minute or two.
_JOIN_SECONDS = 300.0
JOIN_VARIABLE = "INDEXCACHE_JOIN_SECONDS"
_MOST_SECONDS = 86400.0
_FIRST_WORD_SECONDS, _NEXT_WORD_SECONDS = 10.0, 30.0
_LOOK_SECONDS = 0.1
_HINT = (
    "start all of them with accelerate launch or torchrun; where this one should work alone, unset RANK, "
    "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which an earlier job may have left"
)


class Meeting:
    """The store through which processes that were launched together know of each other.

    Args:
        launch: this process among them.
        say: takes a line for the user.
    """

    is_any_held: ClassVar[bool] = False
    """Whether this process has met the others."""

    def __init__(self, launch: Launch, say: Callable[[str], None] | None = None) -> None:
        self.launch = launch
        self.store: Any = None
        self._say = say or _say
        self._patience = join_seconds()
        self._error: Exception | None = None
        self._result: Any = None
        self._is_reached = threading.Event()
        self._is_over = threading.Event()
        # From join on, one thread writes store, error, result and absent; the other only reads them.
        self._absent = list(range(launch.count))

    def join(self, enter: Callable[[Any], Any]) -> Any:
        """Waits for all and then enters what they share; a signal ends the wait, which is another thread's.

        Args:
            enter: connects this process with the others, given the store; may wait for them.

        Returns:
            What ``enter`` does.

        Raises:
            SettingError: not all came in time, or there is no way to where they meet.
        """
        self._resolve()
        threading.Thread(target=self._wait, args=(enter,), daemon=True).start()
        began = time.monotonic()
        next_line = began + _FIRST_WORD_SECONDS
        while not self._has_ended():
            now = time.monotonic()
            if now - began > self._patience:
                what = f"{self._waiting()}: none came within {self._patience:g} s ({JOIN_VARIABLE})"
                raise self._join_error(what)
            # A process that has reached the main one leaves it to that one to name the missing ones.
            if now > next_line and (self.launch.rank == 0 or not self._is_reached.is_set()):
                next_line = now + _NEXT_WORD_SECONDS
                self._say(f"{self._waiting()}, {now - began:.0f} s, {self._patience:g} s at most")
        if isinstance(self._error, IndexcacheError):
            raise self._error
        if self._error is not None:
            raise self._join_error(f"processes cannot meet at {self._place()}: {first_line(self._error)[:160]}")
        Meeting.is_any_held = True
        return self._result

    def _has_ended(self) -> bool:
        """Waits a moment; a signal meanwhile is said to have met nobody, where it did not."""
        try:
            return self._is_over.wait(_LOOK_SECONDS)
        except Stop:
            if self._absent:
                self._say(f"stopped while {self._waiting()}")
            raise

    def _resolve(self) -> None:
        """Asks for the host's address, which torch would do again and again until the wait is over."""
        try:
            socket.getaddrinfo(self.launch.host, self.launch.port)
        except (OSError, UnicodeError) as error:
            raise self._join_error(f"MASTER_ADDR is {self.launch.host!r}: {first_line(error)}") from None

    def is_first(self, name: str) -> bool:
        """Whether no process has asked for ``name`` here before; the store counts, so only one is first."""
        try:
            return bool(self.store.add(f"said/{name}", 1) == 1)
        except RuntimeError:  # the main process is gone: rather twice than never
            return True

    def _wait(self, enter: Callable[[Any], Any]) -> None:
        try:
            self.store = self._reach()
            self._is_reached.set()
            self.store.set(f"here/{self.launch.rank}", "1")
            while self._absent:
                self._absent = [rank for rank in self._absent if not self.store.check([f"here/{rank}"])]
                time.sleep(_LOOK_SECONDS if self._absent else 0)
            self._result = enter(self.store)
        except Exception as error:  # each transport has its own; the waiting thread raises it
            self._error = error
        finally:
            self._is_over.set()

    def _reach(self) -> Any:
        from torch import distributed

        # Under torchrun its agent holds the store, and keeps it for the next attempt.
        is_host = self.launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # Longer than this process waits: torch's own word on it would be a second line.
        patience = timedelta(seconds=2 * self._patience + 10)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            self.launch.host, self.launch.port, self.launch.count, is_host, patience, False, multi_tenant=True
        )
        return distributed.PrefixStore(f"indexcache/{attempt}", store)  # type: ignore[attr-defined]

    def _join_error(self, what: str) -> SettingError:
        error = SettingError(what, hint=_HINT)
        error.alone = not self._is_reached.is_set()
        return error

    def _place(self) -> str:
        return f"{self.launch.host}:{self.launch.port} (MASTER_ADDR, MASTER_PORT)"

    def _waiting(self) -> str:
        if not self._is_reached.is_set() and self.launch.rank:
            absent = [0]
        else:
            absent = [rank for rank in self._absent if rank != self.launch.rank]
        if not absent:
            missing = "the connections between processes"
        elif len(absent) == 1:
            missing = f"process {absent[0]}"
        else:
            missing = f"processes {', '.join(map(str, absent[:8]))}" + (", ..." if len(absent) > 8 else "")
        return f"process {self.launch.rank} of {self.launch.count} waits at {self._place()} for {missing}"


def join_seconds() -> float:
    """How long this process waits for the others: 300 s, or what the environment says.

    Raises:
        SettingError: it says no such number.
    """
    text = os.environ.get(JOIN_VARIABLE, "")
    if not text.strip():
        return _JOIN_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= _MOST_SECONDS:
        raise SettingError(
            f"{JOIN_VARIABLE} is {text!r} in the environment", hint="give seconds above 0, at most a day's 86400"
        )
    return seconds


def _say(line: str) -> None:
    # A closed stderr must not end the run.
    with suppress(OSError):
        sys.stderr.write(f"{one_line(line)}\n")
        sys.stderr.flush()


@contextmanager
def launch_environment(launch: Launch | None) -> Iterator[None]:
    """Within it libraries read ``launch`` from the environment, whatever an earlier job left there."""
    numbers = {"RANK": launch.rank, "WORLD_SIZE": launch.count, "LOCAL_RANK": launch.local_rank} if launch else {}
    before = {name: os.environ.get(name) for name in {*launch_variables(), *numbers}}
    try:
        for name in before:
            os.environ.pop(name, None)
        os.environ.update({name: str(number) for name, number in numbers.items()})
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
