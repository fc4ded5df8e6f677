"""Brings several processes together: says for whom it waits, ends on a signal, and waits for so long only."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from ..errors import IndexcacheError, SettingError, first_line, one_line
from .launching import Launch, misleading

# Processes of one launch start within seconds of each other, on a busy cluster within a minute or two.
_JOIN_SECONDS = 300.0
_FIRST_WORD_SECONDS, _NEXT_WORD_SECONDS = 10.0, 30.0
_LOOK_SECONDS = 0.1
_HINT = (
    "start all of them with accelerate launch or torchrun; where this one should work alone, unset RANK, "
    "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which an earlier job may have left"
)


class Meeting:
    """The store through which processes that were launched together know of each other.

    Args:
        here: this process among them.
        say: takes a line for the user.
    """

    def __init__(self, here: Launch, say: Callable[[str], None] | None = None) -> None:
        self.here = here
        self.store: Any = None
        self._say = say or _say
        self._error: Exception | None = None
        self._result: Any = None
        self._met = threading.Event()
        self._over = threading.Event()
        self._absent = list(range(here.count))

    def join(self, enter: Callable[[Any], Any]) -> Any:
        """Waits for all and then enters what they share; a signal ends the wait, which is another thread's.

        Args:
            enter: connects this process with the others, given the store; may wait for them.

        Returns:
            What ``enter`` does.

        Raises:
            SettingError: not all came in time, or there is no way to where they meet.
        """
        threading.Thread(target=self._wait, args=(enter,), daemon=True).start()
        began = time.monotonic()
        word = began + _FIRST_WORD_SECONDS
        while not self._over.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if now - began > _JOIN_SECONDS:
                raise self._unmet(f"{self._waiting()}: none came within {_JOIN_SECONDS:.0f} s")
            # Whoever reached the main process leaves it to that one to say who else is missing.
            if now > word and (self.here.rank == 0 or not self._met.is_set()):
                word = now + _NEXT_WORD_SECONDS
                self._say(f"{self._waiting()}, {now - began:.0f} s, {_JOIN_SECONDS:.0f} s at most")
        if isinstance(self._error, IndexcacheError):
            raise self._error
        if self._error is not None:
            raise self._unmet(f"processes cannot meet at {self._place()}: {first_line(self._error)[:160]}")
        return self._result

    def is_first(self, name: str) -> bool:
        """Whether no process has said ``name`` here before."""
        try:
            return bool(self.store.add(f"said/{name}", 1) == 1)
        except RuntimeError:  # the main process is gone: rather twice than never
            return True

    def _wait(self, enter: Callable[[Any], Any]) -> None:
        try:
            self.store = self._reach()
            self._met.set()
            self.store.set(f"here/{self.here.rank}", "1")
            while self._absent:
                self._absent = [rank for rank in self._absent if not self.store.check([f"here/{rank}"])]
                time.sleep(_LOOK_SECONDS if self._absent else 0)
            self._result = enter(self.store)
        except Exception as error:  # each transport has its own; the waiting thread raises it
            self._error = error
        finally:
            self._over.set()

    def _reach(self) -> Any:
        from torch import distributed

        # Under torchrun its agent holds the store, and keeps it for the next attempt.
        holds = self.here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # Longer than this process waits: torch's own word on it would be a second line.
        patience = timedelta(seconds=2 * _JOIN_SECONDS + 10)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            self.here.host, self.here.port, self.here.count, holds, patience, False, multi_tenant=True
        )
        return distributed.PrefixStore(f"indexcache/{attempt}", store)  # type: ignore[attr-defined]

    def _unmet(self, what: str) -> SettingError:
        error = SettingError(what, hint=_HINT)
        error.alone = not self._met.is_set()
        return error

    def _place(self) -> str:
        return f"{self.here.host}:{self.here.port} (MASTER_ADDR, MASTER_PORT)"

    def _waiting(self) -> str:
        if not self._met.is_set() and self.here.rank:
            absent = [0]
        else:
            absent = [rank for rank in self._absent if rank != self.here.rank]
        if not absent:
            who = "the connections between processes"
        elif len(absent) == 1:
            who = f"process {absent[0]}"
        else:
            who = f"processes {', '.join(map(str, absent[:8]))}" + (", ..." if len(absent) > 8 else "")
        return f"process {self.here.rank} of {self.here.count} waits at {self._place()} for {who}"


def _say(line: str) -> None:
    # A reader of the progress who left must not cost the run.
    with suppress(OSError):
        sys.stderr.write(f"{one_line(line)}\n")
        sys.stderr.flush()


@contextmanager
def variables(here: Launch | None) -> Iterator[None]:
    """Within it the environment says to libraries what ``here`` does, also where it was left over from a job."""
    wanted = {"RANK": here.rank, "WORLD_SIZE": here.count, "LOCAL_RANK": here.local_rank} if here else {}
    before = {name: os.environ.get(name) for name in {*misleading(), *wanted}}
    try:
        for name in before:
            os.environ.pop(name, None)
        os.environ.update({name: str(number) for name, number in wanted.items()})
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
