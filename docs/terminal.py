"""Draws a search of the embedded model as a terminal shows it: docs/pictures/search.svg.

    python docs/terminal.py            searches and draws; minutes on 2 cores

The text is what the command printed. The picture asks for no font from anywhere.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "pictures" / "search.svg"
WORDS = ("search", "--recipe", "tiny", "--keep", "0.25")
_COLUMNS = 112
# Lines that say the same again, for some seconds each.
_PULSE = re.compile(r"\d+ of \d+ |.*, \d+ s$")


def printed() -> str:
    """What a search prints, in an empty folder; of the lines that only say how far it is, none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "indexcache", *WORDS]
        done = subprocess.run(
            command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    lines = done.stdout.splitlines()
    return "\n".join(line for line in lines if line.startswith("step ") or not _PULSE.match(line))


def drawing(text: str) -> str:
    """``text`` in a terminal's window, as SVG."""
    with Path("/dev/null").open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere, highlight=False)
        console.print(Text(f"$ indexcache {' '.join(WORDS)}", style="bold"))
        console.print(Text(text), soft_wrap=False)
        fonts = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
        return console.export_svg(
            title="indexcache search",
            code_format=fonts.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code", "ui-monospace"),
        )


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawing(printed()), "utf-8")
