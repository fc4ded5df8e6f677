"""Text that is too short, broken, mixed, empty or gone: an error with counts, never a smaller run."""

import gzip
import json
import os

import pytest

from indexcache.calibrate import sources

DOCUMENTS = [{"text": f"document {number} " + "and a few more words " * 40} for number in range(12)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Stream:
    """A streamed dataset, as far as sources use one, whose connection breaks after some rows."""

    def __init__(self, rows, error=None):
        self.rows, self.error = rows, error

    def shuffle(self, seed, buffer_size):
        return self

    def __iter__(self):
        yield from self.rows
        if self.error:
            raise self.error


FILES = {
    "nothing": ("a.jsonl", b"", "is empty"),
    "blank lines": ("a.jsonl", b"\n\n\n", "0 documents"),
    "one short document": ("a.jsonl", lines(DOCUMENTS[:1]), "1 documents"),
    "all short": ("a.jsonl", lines([{"text": f"w{n}"} for n in range(30)]), "30 documents"),
    "the same again and again": ("a.jsonl", lines(DOCUMENTS[:1] * 50), "1 documents"),
    "white space": ("a.jsonl", lines([{"text": "  \n"}] * 50), "0 documents"),
    "too few": ("a.jsonl", lines(DOCUMENTS[:3]), "were asked for"),
    "no such column": ("a.jsonl", lines([{"title": "x"}]), "no column 'text'"),
    "a number": ("a.jsonl", lines([*DOCUMENTS, {"text": 5}]), "holds int"),
    "numbers": ("a.jsonl", lines([{"text": 5}] * 9), "holds int in column 'text'"),
    "nothing for text": ("a.jsonl", lines([{"text": None}] * 9), "column 'text'"),
    "a list": ("a.jsonl", lines([{"text": ["a"]}] * 9), "holds list"),
    "a line that is no JSON": ("a.jsonl", lines(DOCUMENTS) + b"{oops\n" + lines(DOCUMENTS), "cannot "),
    "cut off": ("a.jsonl", lines(DOCUMENTS)[:-20], "cannot "),
    "columns that change": ("a.jsonl", lines([{"text": "x " * 200}, {"body": "y"}] * 20), "1 documents"),
    "a broken gz": ("a.jsonl.gz", b"\x1f\x8b" + b"no gzip at all", "cannot "),
    "a cut gz": ("a.jsonl.gz", gzip.compress(lines(DOCUMENTS * 40))[:-400], "cannot "),
    "a cut zst": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x04", "cannot "),
    "a cut xz": ("a.jsonl.xz", b"\xfd7zXZ\x00\x00", "cannot "),
    "not parquet": ("a.parquet", b"PAR1 nothing PAR1", "cannot "),
    "not UTF-8": ("a.txt", b"gr\xfcn" * 500, "is not UTF-8: byte 2"),
    "a broken UTF-16": ("a.txt", b"\xff\xfe\x00\xd8" * 500, "is not UTF-16-LE: byte 2"),
    "empty cells": ("a.csv", b"text,id\n" + b",1\n" * 9, "0 documents"),
    "cells too many": ("a.csv", b"id,text\n" + b"1,a,b\n" * 9, "more cells"),
    "a csv of one column": ("a.csv", b"id\n1\n2\n", "no column 'text'"),
    "json of another shape": ("a.json", b"3", "cannot "),
    "chat without a role": ("a.jsonl", lines([{"messages": [{"content": "x"}]}] * 9), "without role and content"),
    "a name of no format": ("a.md", b"text", "no text that can be read"),
}


@pytest.fixture
def search(run_cli, checkpoints, tmp_path, cases):
    """Searches over a dataset and counts a case: refused in one line that says so, with nothing written."""

    def search(what, dataset, says):
        out = tmp_path / "run"
        arguments = ["search", "--model", checkpoints["glm_moe_dsa"], "--dataset", dataset, "--keep", 0.5]
        arguments += ["--window", 48, "--windows", 12, "--heldout", 6, "--out", out, "-q", "--json"]
        code, printed, err = run_cli(*arguments)
        fine = code == 2 and says in err and len(err.splitlines()) == 1 and err.strip().isprintable()
        fine = fine and json.loads(printed)["error"]["type"] == "DatasetError" and not out.exists()
        cases.check(fine, f"{what}: {code} {err[:300]!r}")

    return search


@pytest.mark.reliability("R12")
def test_files(search, tmp_path):
    for what, (name, content, says) in FILES.items():
        (tmp_path / name).write_bytes(content)
        search(what, tmp_path / name, says)
        (tmp_path / name).unlink()


@pytest.mark.reliability("R12")
def test_what_is_no_file(search, tmp_path):
    search("a missing file", tmp_path / "none.jsonl", "does not exist")
    (tmp_path / "empty").mkdir()
    search("an empty folder", tmp_path / "empty", "no text that can be read")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    search("a loop", tmp_path / "loop.jsonl", "does not exist")
    os.mkfifo(tmp_path / "pipe.jsonl")
    search("a pipe", tmp_path / "pipe.jsonl", "no text that can be read")
    search("a device", "/dev/zero", "no text that can be read")
    search("a name too long", "./" + "x" * 5000, "does not exist")
    search("an unknown home", "~nobody-of-that-name/a.jsonl", "does not exist")
    search("a hub dataset out of reach", "nobody/nothing", "cannot open dataset")


@pytest.mark.reliability("R12")
@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_connection_that_breaks(search, monkeypatch, cases, after):
    breaks = {
        "closed": ConnectionError("Connection reset by peer"),
        "slow": TimeoutError("The read operation timed out"),
        "gated": PermissionError("403 Client Error: Access to dataset acme/text is restricted"),
        "lines": RuntimeError("many\nlines\x1b[2J of it"),
        "gone": FileNotFoundError("404: data-00003-of-00100.parquet"),
    }
    for what, error in breaks.items():
        monkeypatch.setattr(sources, "_load", lambda *_, rows=DOCUMENTS[:after], error=error: Stream(rows, error))
        search(what, "acme/text", f"cannot be read on after {after} rows")


@pytest.mark.reliability("R12")
def test_a_stream_that_ends_early_is_no_smaller_run(search, monkeypatch):
    for count in (0, 1, 2):
        monkeypatch.setattr(sources, "_load", lambda *_, rows=DOCUMENTS[:count]: Stream(rows))
        search(f"{count} documents", "acme/text", f"of the dataset's {count} documents")


@pytest.mark.reliability("R12")
def test_a_dataset_that_wants_permission_or_has_no_such_split(search, monkeypatch):
    import datasets

    for what in ("Dataset 'acme/text' is a gated dataset on the Hub.", 'Unknown split "train".', "a\nb\x1b[31m"):

        def refuse(*_, said=what, **__):
            raise ValueError(said)

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        search(what, "acme/text", "cannot open dataset 'acme/text'")


@pytest.mark.reliability("R12", "R22")
def test_a_cache_that_cannot_be_written(search, monkeypatch, text_file):
    import datasets

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/somewhere/datasets")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    search("a read-only cache, hub", "acme/text", "keeps its cache under HF_HOME")
    monkeypatch.setattr(datasets.IterableDataset, "from_generator", refuse)
    search("a read-only cache", text_file, "keeps its cache under HF_HOME")
