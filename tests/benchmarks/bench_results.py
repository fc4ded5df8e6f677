"""What a benchmark has measured: JSON lines written as results come, a deadline, and the table at the end."""

import argparse
import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MET, MISSED, UNKNOWN = "met", "missed", ""


class OutOfTimeError(Exception):
    """The time given is over; what is measured is on disk."""


class Deadline:
    """Ends a benchmark between two batches once it has run for ``seconds``; never where that is None."""

    def __init__(self, seconds: float | None) -> None:
        self._began = time.perf_counter()
        self._seconds = self._until = math.inf if seconds is None else seconds

    @property
    def ends(self) -> bool:
        return self._seconds < math.inf

    def give(self, share: float) -> None:
        """Lets what comes take ``share`` of the time that is left."""
        passed = time.perf_counter() - self._began
        self._until = passed + share * max(0.0, self._seconds - passed) if self.ends else math.inf

    def check(self) -> None:
        """Raises OutOfTimeError once the time is over."""
        if time.perf_counter() - self._began > self._until:
            raise OutOfTimeError


@dataclass(frozen=True)
class Row:
    """A line of the last table: what, its target, what was measured, and whether that meets it."""

    what: str
    target: str
    measured: str
    verdict: str

    @classmethod
    def judged(cls, what: str, target: str, measured: str, met: bool | None) -> "Row":
        return cls(what, target, measured, UNKNOWN if met is None else MET if met else MISSED)


class Book:
    """Results by name. Each is written as one line when it is known, and is not measured again in a later run.

    Args:
        path: the file; one of an interrupted run with the same settings is gone on with.
        settings: what all results depend on.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._results: dict[str, Any] = {}
        settings = json.loads(json.dumps(settings))
        if path.exists():
            first, *lines = path.read_text("utf-8").splitlines() or ["{}"]
            if json.loads(first).get("settings") != settings:
                raise SystemExit(f"{path} holds results of other settings: remove it, or name another with --out")
            for line in lines:
                if line.endswith("}"):  # a kill may leave half a line
                    self._results |= {(entry := json.loads(line))["name"]: entry["result"]}
            path.write_text("".join(f"{line}\n" for line in (first, *lines) if line.endswith("}")), "utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings})

    def result(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result ``name``, measured now if it is not known."""
        if name not in self._results:
            began = time.perf_counter()
            # Through JSON, so that a result is the same whether it was measured now or read.
            result = json.loads(json.dumps(measure()))
            seconds = round(time.perf_counter() - began, 3)
            self._results[name] = result
            self._write({"name": name, "seconds": seconds, "result": result})
            print(f"{seconds:9.1f} s  {name}", flush=True)
        return self._results[name]

    def keep_rows(self, rows: Sequence[Row], known: Sequence[Row]) -> list[Row]:
        """Writes lines of the table down, and prints them, but for those that are known."""
        for row in rows:
            if row not in known:
                self._write({"name": f"row: {row.what}", "seconds": 0, "result": vars(row)})
                print(f"    {row.what}: {row.measured}  {row.verdict}", flush=True)
        return list(rows)

    def _write(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


Part = Callable[[], Sequence[Row]]
"""Measures one part of a benchmark: its lines of the table."""


def run_parts(parts: dict[str, Part], names: Sequence[str], book: Book, deadline: Deadline) -> None:
    """Measures the parts ``names`` in the order of ``parts``, as far as time allows; prints the table.

    No part takes more than two fifths of the time that is left while others wait; what is left goes to those that
    were cut short.
    """
    rows: dict[str, list[Row]] = {}
    failures: set[str] = set()
    for share in (0.4, 1.0) if deadline.ends else (1.0,):
        for name, part in parts.items():
            if name not in names or name in failures:
                continue
            deadline.give(share)
            try:
                rows[name] = book.keep_rows(part(), rows.get(name, ()))
            except OutOfTimeError:
                rows.setdefault(name, [Row(f"({name})", "", "no time left", UNKNOWN)])
            except Exception as error:  # the other parts are worth their time
                traceback.print_exc()
                failures.add(name)
                rows[name] = [Row(f"({name})", "", f"failed: {error}", UNKNOWN)]
    print_table([row for part_rows in rows.values() for row in part_rows])
    if failures:
        raise SystemExit(1)


def print_table(rows: Sequence[Row]) -> None:
    """The table, as Markdown."""
    print("\n| what | target | measured | |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.target} | {row.measured} | {row.verdict} |")
    print(flush=True)


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str], out: str) -> None:
    """Options of how long to measure, what, and where results go."""
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="which; all by default")
    parser.add_argument("--seconds", type=float, help="end after so many, with what is measured by then")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(out),
        help="JSON lines, written as results come; gone on with if there",
    )
