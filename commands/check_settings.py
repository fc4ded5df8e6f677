"""How check asks a server: what was given on the command line, and the key from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from ..errors import SettingError
from ..search.export.engines import ENGINES

KEY_VARIABLE: Final = "INDEXCACHE_API_KEY"


@dataclass(frozen=True)
class CheckSettings:
    """How a server is to be asked.

    Args:
        url: its address with /v1.
        model: its name of the model; None for the only one.
        engine: what it runs in, as in the table of engines; None to ask the server.
        max_requests: that are answered at most.
        seconds: that an answer may take.
        inside: whether to ask for log-probabilities within the prompts too.
        key: sent as a bearer token; None for none.
    """

    url: str
    model: str | None = None
    engine: str | None = None
    max_requests: int = 200
    seconds: float = 60.0
    inside: bool = False
    key: str | None = None


def check_settings(
    url: str | None, model: str | None, engine: str | None, max_requests: int, seconds: float, inside: bool
) -> CheckSettings:
    """The settings of a check.

    Raises:
        SettingError: no address, or an engine that is not known.
    """
    if not url:
        raise SettingError("--url was not given: it names the server", hint="give it as http://host:port/v1")
    if engine is not None and engine.lower() not in ENGINES:
        raise SettingError(f"--engine: {engine!r} is not known", hint=f"give one of {', '.join(ENGINES)}")
    key = os.environ.get(KEY_VARIABLE) or None
    return CheckSettings(url, model, engine and engine.lower(), max_requests, seconds, inside, key)
