"""Progress and lines on terminals of any width."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.table import Table

from indexcache.errors import wrapped
from indexcache.system import console
from indexcache.system.console import Reporter

BYTES = {0: "0 bytes", 999: "999 bytes", 14_500_000_000: "14.5 GB", 999_600_000: "1,000 MB", 690 * 10**9: "690 GB"}


@pytest.mark.parametrize("size", BYTES)
def test_bytes_for_people(size):
    assert console.byte_count(size) == BYTES[size]


SCRIPT = """
import time
from indexcache.system import console
from indexcache.system.console import Reporter
with Reporter() as reporter:
    reporter.begin(12345, "window evaluations")
    reporter.advance(6789)
    reporter.say("news longer than the terminal, with /a/path/that/is/never/broken/by/anything in it")
    time.sleep(0.6)
    reporter.advance(1)
    time.sleep(0.6)
"""


def on_terminal(columns, *command):
    """What a program writes to a terminal of that width, without what steers it."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    text = b""
    while True:
        try:
            chunk = os.read(reader, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        text += chunk
    os.close(reader)
    assert process.wait() in (0, 2)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
def test_the_bar_keeps_count_and_time_left_and_lines_end_at_words(columns):
    text = on_terminal(columns, sys.executable, "-c", SCRIPT)
    shown = [line for line in re.split(r"[\r\n]+", text) if "6789/12345" in line or "6790/12345" in line]
    assert shown, text
    assert all(re.search(r"\d+:\d\d|--:--", line) for line in shown)
    assert all(len(line.rstrip()) <= columns for line in shown)
    news = [
        line for line in re.split(r"[\r\n]+", text) if "news" in line or "broken" in line or "terminal," in line
    ]
    assert " ".join(" ".join(news).split()).count("/a/path/that/is/never/broken/by/anything") == 1


@pytest.mark.parametrize("columns", [40, 100])
def test_errors_end_at_words_on_a_terminal(columns):
    text = on_terminal(columns, sys.executable, "-m", "indexcache", "cut", "no/such/plan.json", "--keep", "1/4")
    lines = [line for line in re.split(r"[\r\n]+", text) if line]
    said = "error: plan 'no/such/plan.json' does not exist (indexcache search writes one)"
    assert " ".join(lines) == f"{said} [docs/troubleshooting.md#plans]"
    assert all(len(line) <= columns for line in lines)


def test_nothing_is_wrapped_where_no_terminal_reads(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "40")
    with (tmp_path / "log").open("w") as log:
        assert wrapped("word " * 50, log) == "word " * 50


class TestTotals:
    def test_a_guessed_total_grows_and_is_never_passed(self):
        reporter = Reporter(quiet=True)
        reporter.begin(10, "evaluations", guessed=True)
        for _ in range(5):
            reporter.advance(3)
            assert reporter._done <= reporter._total
        assert (reporter._done, reporter._total) == (15, 15)

    def test_a_known_total_is_never_passed(self):
        reporter = Reporter(quiet=True)
        reporter.begin(15, "evaluations")
        for _ in range(3):
            reporter.advance(6)
        assert (reporter._done, reporter._total) == (15, 15)

    @pytest.mark.parametrize("guessed", [True, False])
    def test_lines_say_so_too(self, capsys, guessed):
        clock = iter(range(0, 10_000, 60))
        reporter = Reporter(clock=lambda: next(clock))
        reporter.begin(4, "evaluations", guessed)
        for _ in range(4):
            reporter.advance(3)
            reporter.pulse()
        for done, total in re.findall(r"(\d+) of (\d+) evaluations", capsys.readouterr().err):
            assert int(done) <= int(total)


@pytest.mark.parametrize("columns", [24, 40, 60, 100, 200])
def test_figures_of_a_table_are_whole_on_a_narrow_terminal(monkeypatch, columns):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout", Terminal())
    figures = ["2.34567 ± 0.00012", "+0.12345", "+0.23456"]
    table = Table()
    table.add_column("pattern")
    for name in ("kept", "loss", "increase", "increase, held out"):
        table.add_column(name, no_wrap=True)
    table.add_row("this plan", "12", *figures)
    table.add_row("all full", "16", "2.1", "", "")
    console.print_table(console.new_console(), table)
    printed = sys.stdout.getvalue().splitlines()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in printed) <= columns
    assert all(any(figure in line for line in printed) for figure in ["this plan", *figures])
