"""Makes one of a run's file operations fail, fall short or be its last."""

import os
import signal

CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir", "ftruncate")


class SystemCalls:
    """Counts the calls that change files, and meddles with number ``at``.

    ``how`` is "kill", "torn" (half of a write, then killed), "short" (half of a write), or an error's number.
    """

    def __init__(self, at=-1, how="kill"):
        self.at, self.how = at, how
        self.made = []

    def install(self, patch):
        for name in CALLS:
            patch(os, name, self._wrapped(name, getattr(os, name)))
        return self

    def install_for_good(self):
        self.install(setattr)

    def _wrapped(self, name, call):
        def wrapper(*given, **named):
            self.made.append(name)
            if len(self.made) - 1 == self.at:
                if self.how == "short" and name == "write":
                    return call(given[0], bytes(given[1])[: max(1, len(given[1]) // 2)])
                if self.how == "torn" and name == "write":
                    call(given[0], bytes(given[1])[: len(given[1]) // 2])
                if self.how in ("kill", "torn"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if isinstance(self.how, int):
                    raise OSError(self.how, os.strerror(self.how))
            return call(*given, **named)

        return wrapper
