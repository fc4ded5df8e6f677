"""One file's text: every suffix, compression and encoding that is promised, and blank rows skipped."""

import bz2
import gzip
import json
import lzma
import re
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import indexcache
from indexcache.calibrate.rows import COMPRESSIONS, FORMATS
from indexcache.calibrate.sources import Documents, TextSource
from indexcache.errors import DatasetError

TEXTS = ["one document", "ein anderes, größer", "第三"]


def documents(path, **options):
    return Documents(TextSource(str(path), **options), Plain(), 0)


class Plain:
    chat_template = None


def content(suffix):
    """TEXTS as a file that ends in ``suffix``, beside a column that is not read."""
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    return {
        ".jsonl": lines.encode(),
        ".ndjson": lines.encode(),
        ".json": json.dumps(rows, indent=1).encode(),
        ".parquet": table.getvalue().to_pybytes(),
        ".csv": "".join(["id,text\n", *(f'{row["id"]},"{row["text"]}"\n' for row in rows)]).encode(),
        ".tsv": "".join(["id\ttext\n", *(f"{row['id']}\t{row['text']}\n" for row in rows)]).encode(),
        ".txt": TEXTS[1].encode(),
    }[suffix]


def packed(data, compression, path):
    if compression == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside", data)
        return
    pack = {
        "": bytes,
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
    }
    path.write_bytes(pack[compression](data))


@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("spelled", [str.lower, str.upper])
def test_every_suffix_that_is_promised_is_read(tmp_path, suffix, compression, spelled):
    path = tmp_path / f"good{spelled(suffix + compression)}"
    packed(content(suffix), compression, path)
    expected = [TEXTS[1]] if suffix == ".txt" else TEXTS
    assert sorted(documents(path)) == sorted(expected)


def test_the_documents_promise_what_is_read():
    text = (Path(indexcache.__file__).parent / "docs/windows.md").read_text("utf-8")
    promised = re.search(r"a local file: (.+?), as it is or compressed \((.+?)\)", text, re.DOTALL)
    assert set(re.findall(r"`(\.\w+)`", promised[1])) == set(FORMATS)
    assert set(re.findall(r"`(\.\w+)`", promised[2])) == set(COMPRESSIONS)


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".parquet"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix, encoding):
    path = tmp_path / f"marked{suffix}"
    path.write_bytes(content(suffix).decode().encode(encoding))
    expected = [TEXTS[1]] if suffix == ".txt" else TEXTS
    assert sorted(documents(path)) == sorted(expected)


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
def test_both_byte_orders_are_read(tmp_path, mark):
    (tmp_path / "a.txt").write_bytes("\ufeffgrün".encode(mark))
    assert list(documents(tmp_path / "a.txt")) == ["grün"]


@pytest.mark.reliability("R12")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".json"])
@pytest.mark.parametrize("before", [0, 100, 300_000])
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_another_encoding_is_named_with_file_and_byte(tmp_path, suffix, before, compression):
    path = tmp_path / f"a{suffix}{compression}"
    start = {".jsonl": b'{"text": "', ".json": b'[{"text": "', ".csv": b"text\n", ".tsv": b"text\n"}.get(
        suffix, b""
    )
    packed(start + b"x" * before + "grün".encode("latin-1"), compression, path)
    with pytest.raises(DatasetError, match=rf"'.*a\{suffix}.* is not UTF-8: byte {len(start) + before + 2}$"):
        list(documents(path))


@pytest.mark.reliability("R12")
def test_utf_16_without_a_mark_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("some text".encode("utf-16-le"))
    with pytest.raises(DatasetError, match="byte 1 is zero"):
        list(documents(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'id,text\n1,kept\n2,\n3,NULL\n4,"  "\n5,""\n'),
        ("a.tsv", "id\ttext\n1\tkept\n2\t\n3\tNA\n4\t  \n5\t\n"),
        ("a.jsonl", '{"text": "kept"}\n{"text": null}\n\n{"text": ""}\n{"text": " \\n"}\n{"other": 1}\n'),
        ("a.json", '[{"text": "kept"}, {"text": null}, {"text": ""}, {"text": "\\t"}, {}]'),
        ("a.jsonl", '{"other": 1}\r\n{"text": "kept"}\r\n{"text": []}\r\n{"text": null}\r\n{"text": ""}\r\n'),
    ],
)
def test_rows_without_text_are_skipped_and_counted(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    read = documents(tmp_path / name)
    assert list(read) == ["kept"]
    assert read.notes == ["4 of 5 rows read hold no text and are skipped"]


def test_null_cells_of_a_table_are_skipped(tmp_path):
    table = pyarrow.table({"text": ["kept", None, "", "also"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    read = documents(tmp_path / "a.parquet")
    assert sorted(read) == ["also", "kept"]
    assert read.notes == ["2 of 4 rows read hold no text and are skipped"]


def test_cells_of_a_csv_are_text_whatever_they_look_like(tmp_path):
    (tmp_path / "a.csv").write_text("text\n2024\n007\n1.50\nTrue\n")
    assert sorted(documents(tmp_path / "a.csv")) == ["007", "1.50", "2024", "True"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('{"text": "a",\n "id": 1}\n{"text": "b",\n "id": 2}', ["a", "b"]),
        ('{\n"text": ["a", "b"],\n "id": [1, 2]}', ["a", "b"]),
        ('{\n"text": {"0": "a", "1": "b"},\n "id": {"0": 1, "1": 2}}', ["a", "b"]),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": "two", "more": {"deep": [1]}}', ["a", "b"]),
        ('{"text": "half \\ud83d of one"}', ["half \N{REPLACEMENT CHARACTER} of one"]),
        ("[\n]", []),
    ],
)
def test_json_of_every_shape(tmp_path, text, expected):
    (tmp_path / "a.json").write_text(text)
    assert sorted(documents(tmp_path / "a.json")) == expected


def test_line_ends_of_a_text_are_line_feeds(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    assert list(documents(tmp_path / "a.txt")) == ["one\ntwo\n"]


def test_chats_of_a_table_have_no_keys_that_are_null(tmp_path):
    class Chat:
        chat_template = "given"

        def apply_chat_template(self, messages, tokenize):
            return " / ".join(" ".join(message) for message in messages)

    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool": "y"}]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [messages]}), tmp_path / "a.parquet")
    rendered = list(Documents(TextSource(str(tmp_path / "a.parquet")), Chat(), 0))
    assert rendered in (["content role / content role tool"], ["role content / role content tool"])


@pytest.mark.reliability("R12")
@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_a_cut_archive_is_an_error(tmp_path, compression):
    path = tmp_path / f"a.jsonl{compression}"
    packed(
        "".join(json.dumps({"text": f"{n} {hash(str(n))}"}) + "\n" for n in range(3000)).encode(),
        compression,
        path,
    )
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"a\.jsonl.* cannot be read on after"):
        list(documents(path))


def test_quotes_of_a_tsv_are_text_unless_all_close(tmp_path):
    path = tmp_path / "a.tsv"
    # As most are published: a quote that opens a cell is part of the text, and swallows no row.
    path.write_text('text\tid\n"hello\t1\nfoo\t2\n"bar\t3\n"all of it"\t4\nbaz" she said\t5\n')
    assert sorted(documents(path)) == ['"all of it"', '"bar', '"hello', 'baz" she said', "foo"]
    path.write_text('text\tid\n"hello\t1\nfoo\t2\nbar"\t3\n')  # closes by accident: each line is a whole row
    assert sorted(documents(path)) == ['"hello', 'bar"', "foo"]
    path.write_text('text\tid\n"never closed\t1\nfoo\t2\n')
    assert sorted(documents(path)) == ['"never closed', "foo"]
    # As pandas writes them.
    path.write_text('text\tid\n"a ""b"" c"\t1\n"two\nlines"\t2\n"a\ttab"\t3\n' + f'"{"long " * 40_000}"\t4\n')
    assert sorted(documents(path)) == ["a\ttab", 'a "b" c', "long " * 40_000, "two\nlines"]


@pytest.mark.reliability("R12")
@pytest.mark.parametrize(("before", "line"), [("", 2), ('"two\nlines",0\n\na,1\n', 6)])
def test_a_quote_that_never_closes_is_named_by_its_line(tmp_path, before, line):
    (tmp_path / "a.csv").write_text(f'text,id\n{before}"hello,1\nfoo,2\n')
    with pytest.raises(
        DatasetError, match=rf"a\.csv' has a quote .* never closed, in the row of line {line}$"
    ) as caught:
        list(documents(tmp_path / "a.csv"))
    assert "write the inner quote twice" in caught.value.hint


@pytest.mark.reliability("R12")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('text,id\n"5 inches,1\nfoo,2\n"bar",3\nbaz,4\n', 2),  # the next cell's quote would close it
        ('text,id\nfoo,0\n"a 5"" disk,1\nfoo,2\n"bar",3\nbaz,4\n', 3),
        ('text,id\n"two\nlines",0\nfoo,"\nbar,2\n"baz",3\n', 4),
        ('text\n"two\nlines\nfoo\n"bar"\n', 2),
        ('text,"id\nfoo,1\n"bar",2\n', 1),
        ('text,id\n"5 inches,1\nfoo,2\nbar,3"\n', 2),  # all rows in one cell, and no other
        ('text,id\nfoo,1\n"5 inches,2', 3),
    ],
)
def test_a_quote_that_takes_in_other_rows_is_named_by_its_line(tmp_path, text, line):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DatasetError, match=rf"never closed, in the row of line {line}$"):
        list(documents(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('text,id\n"two\nlines",1\n"a ""b""\nc",2\n"d, e\nf, g",3', ['a "b"\nc', "d, e\nf, g", "two\nlines"]),
        ('text,id\n"said "hi" to me",1\n5" disk,2\n', ['5" disk', 'said hi" to me"']),  # as csv readers have it
        ('text\n"two\nlines"\nfoo\n', ["foo", "two\nlines"]),
        ('text,id,more\n"two\nlines"\n"three\n\nlines",1\nfoo\n', ["foo", "three\n\nlines", "two\nlines"]),
        ('text,id\r\n"two\r\nlines",1\r\n', ["two\r\nlines"]),
        ("text,id\n\n\nfoo,1\n\n", ["foo"]),
    ],
)
def test_cells_over_several_lines_that_are_meant(tmp_path, text, expected):
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert sorted(documents(tmp_path / "a.csv")) == expected


@pytest.mark.reliability("R12")
@pytest.mark.parametrize(
    ("name", "head", "says", "hint"),
    [
        ("a.csv", f"1,{'word ' * 400}", "begins with '1'$", "does its first line name columns?"),
        ("a.csv", ",".join("abcdefghijklmnop"), "no column 'text'", "'j', ...: name one"),
        ("a.csv", "text;id", "by semicolons, not by commas", "save it with commas"),
        ("a.csv", "id\tText", "by tabs, not by commas", "name it .tsv"),
        ("a.tsv", "text,id", "by commas, not by tabs", "save it with tabs"),
        ("a.csv", "id,Text", "no column 'text'", "it has 'Text': give --column Text"),
        ("a.csv", "id, text", "no column 'text'", "it has ' text': give --column ' text'"),
        ("a.jsonl", '{"TEXT ": "x"}', "no column 'text'", "it has 'TEXT ': give --column 'TEXT '"),
        ("a.jsonl", "{}", "no column 'text'", "its rows name no columns at all: give another file"),
    ],
)
def test_the_hint_at_a_missing_column_helps(tmp_path, name, head, says, hint):
    (tmp_path / name).write_text(f"{head}\n")
    if not name.endswith(".jsonl"):
        separator = "\t" if "\t" in head or name.endswith(".tsv") else ";" if ";" in head else ","
        (tmp_path / name).write_text(f"{head}\n{separator.join('1' * len(head.split(separator)))}\n")
    with pytest.raises(DatasetError, match=says) as caught:
        list(documents(tmp_path / name))
    assert hint in caught.value.hint
    assert len(str(caught.value)) + len(caught.value.hint) < 400


def test_no_number_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": NaN}\n{"text": "kept"}\n')
    read = documents(tmp_path / "a.jsonl")
    assert list(read) == ["kept"]
    assert read.notes == ["1 of 2 rows read hold no text and are skipped"]


@pytest.mark.parametrize("name", ["a.jsonl.zip", "plain.zip", "PLAIN.ZIP"])
def test_a_zip_needs_one_file_besides_hidden_ones(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for hidden in (".DS_Store", "folder/.DS_Store", "__MACOSX/._a.jsonl", ".git/config.json"):
            archive.writestr(hidden, b"\0\xff")
        archive.writestr("folder/a.jsonl", '{"text": "kept"}\n')
    assert list(documents(tmp_path / name)) == ["kept"]
    assert list(documents(tmp_path)) == ["kept"]


@pytest.mark.reliability("R12")
@pytest.mark.parametrize("names", [["a.jsonl", "b.jsonl"], ["a.pdf"], []])
def test_a_zip_that_says_no_format_is_to_be_unpacked(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    with pytest.raises(DatasetError, match="no text that can be read") as caught:
        documents(tmp_path / "plain.zip")
    assert caught.value.hint.startswith("unpack it")
    (tmp_path / "plain.zip").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="no text that can be read"):
        documents(tmp_path / "plain.zip")


@pytest.mark.reliability("R12")
def test_an_archive_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        archive.writestr("a.jsonl", "{}")
        archive.writestr("b.jsonl", "{}")
    with pytest.raises(DatasetError, match="holds 2 files"):
        list(documents(tmp_path / "a.jsonl.zip"))
