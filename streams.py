"""The program's streams: open whatever the shell closed, and able to write any character in some way."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO

from .plain_text import spell_out


def prepare_streams() -> None:
    """Makes stdout and stderr take any text.

    A stream that the shell closed leads nowhere from then on: else the next file that is opened would get its
    number, and with it what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=spell_out())


def abandon(stream: TextIO) -> None:
    """Points ``stream`` elsewhere, so that the interpreter's last flush of it is silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
