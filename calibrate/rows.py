"""Reads the text column of one file, row by row, whatever its format, compression and encoding."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from ..errors import DatasetError, IndexcacheError, first_line
from ..system.files import refuse_pointer

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
SAVED = "saved"
"""The format of a folder that ``Dataset.save_to_disk`` wrote."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_SPACE = re.compile(r"\S")
_CHUNK = 1 << 20
_ROWS_AT_A_TIME = 1000
_LONGEST_CELL = 2**31 - 1
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_OTHER_SEPARATORS = {";": "semicolons", "|": "bars", "\t": "tabs", ",": "commas"}
_NAME_SHOWN, _NAMES_SHOWN = 40, 10  # characters of a column's name, and names


@dataclass(frozen=True)
class TextFile:
    """A file with text, or a folder that ``Dataset.save_to_disk`` wrote.

    Args:
        path: where it is.
        format: one of ``FORMATS``' values, or ``SAVED``.
        compression: one of ``COMPRESSIONS``, or nothing.
        stem: its name without the suffixes that say so.
        in_folder: whether it was met in a folder, and not named itself.
    """

    path: Path
    format: str
    compression: str = ""
    stem: str = ""
    in_folder: bool = False


@dataclass(frozen=True)
class Cell:
    """What one row holds in the text column, None for nothing, and where that was read."""

    value: Any
    column: str
    place: str


def text_file(path: Path, in_folder: bool = False) -> TextFile | None:
    """``path`` with the format and compression that its suffixes name; None where they name no format.

    Of a zip archive whose name names none, its only file's name does.
    """
    name, compression = path.name, ""
    if (suffix := Path(name).suffix.lower()) in COMPRESSIONS:
        name, compression = name[: -len(suffix)], suffix
    suffix = Path(name).suffix.lower()
    if suffix in FORMATS:
        return TextFile(path, FORMATS[suffix], compression, name[: -len(suffix)], in_folder)
    member = Path(_only_name(path) or "") if compression == ".zip" and path.is_file() else Path()
    suffix = member.suffix.lower()
    return TextFile(path, FORMATS[suffix], compression, name, in_folder) if suffix in FORMATS else None


def _only_name(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = _members(archive)
    except (OSError, zipfile.BadZipFile):
        return None
    return names[0] if len(names) == 1 else None


def readable_names() -> str:
    """The suffixes that are read, for people."""
    return f"{', '.join(sorted(FORMATS))}, also compressed ({', '.join(sorted(COMPRESSIONS))})"


def cells(file: TextFile, choices: Sequence[str]) -> Iterator[Cell]:
    """The text column of ``file``: the first of ``choices`` that it has.

    Raises:
        DatasetError: unreadable, damaged, of an unknown encoding, or without such a column.
    """
    count = 0
    try:
        for column, value in _READERS[file.format](file, choices):
            yield Cell(value, column, str(file.path))
            count += 1
    except IndexcacheError:
        raise
    except UnicodeDecodeError as error:
        raise _encoding_error(file, error) from error
    except Exception as error:  # any of the readers' own: broken JSON, a damaged archive, a disk that fails, ...
        raise DatasetError(
            f"{str(file.path)!r} cannot be read on after {count} rows: {first_line(error)}",
            hint="check the file",
        ) from error


def column_of(columns: Iterable[str], choices: Sequence[str], place: str, in_folder: bool = False) -> str:
    """The first of ``choices`` among ``columns``.

    Args:
        columns: the names that are there.
        choices: names that will do.
        place: what they are columns of, for the error.
        in_folder: whether that is one of a folder's files, which may be there by accident.

    Raises:
        DatasetError: none is.
    """
    names = list(columns)
    for name in choices:
        if name in names:
            return name
    shown = ", ".join(map(_shown, names[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    hints = [f"it has {shown}: name one with --column"] if names else []
    if (near := _near_name(names, choices)) is not None:
        hints = [f"it has {near!r}: give --column {shlex.quote(near)}"]
    if in_folder:
        hints.append("remove the file from the folder, or give the file with the text itself")
    raise DatasetError(
        f"{place} has no column {' or '.join(map(repr, choices))}",
        hint=", or ".join(hints) or "its rows name no columns at all: give another file",
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= _NAME_SHOWN else name[:_NAME_SHOWN] + "...")


def _near_name(names: Sequence[str], choices: Sequence[str]) -> str | None:
    """A name that is one of ``choices`` but for case, quotes and white space around it."""
    for name in names:
        if str(name).strip(" \t\r\n\"'\ufeff").casefold() in {word.casefold() for word in choices}:
            return str(name)
    return None


def _text_cells(file: TextFile, choices: Sequence[str]) -> Iterator[tuple[str, Any]]:
    column = column_of(["text"], choices, repr(str(file.path)))
    with _text_stream(file) as stream:
        yield column, stream.read()


def _json_cells(file: TextFile, choices: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Rows that lack the column hold nothing in it, as long as others have it."""
    column, empty_rows = None, 0  # the rows before the first that has the column
    names: dict[str, None] = {}
    for row in _json_rows(file):
        if column is None and (column := next((name for name in choices if name in row), None)) is None:
            empty_rows += 1
            names.update(dict.fromkeys(row))
            continue
        yield from ((column, None) for _ in range(empty_rows))
        empty_rows = 0
        yield column, row.get(column)
    if empty_rows:
        column_of(names, choices, repr(str(file.path)), file.in_folder)


def _json_rows(file: TextFile) -> Iterator[Mapping[str, Any]]:
    """The objects of JSON Lines, or of whole documents: arrays, columns, or objects one after the other."""
    with _text_stream(file) as stream:
        lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
        first = next(lines, None)
        if first is None:
            return
        # An object on the first line means JSON Lines; anything else is parsed as a whole.
        if not _is_object(first[1]):
            yield from _rows_of_documents(first[1] + stream.read())
            return
        for number, line in chain([first], lines):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
            yield _row(row, f"line {number}")


def _is_object(line: str) -> bool:
    # An array is never a row: it is a document, if of one line.
    if line.lstrip().startswith("["):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _rows_of_documents(text: str) -> Iterator[Mapping[str, Any]]:
    decoder, position = json.JSONDecoder(), 0
    while start := _NO_SPACE.search(text, position):
        document, position = decoder.raw_decode(text, start.start())
        rows = document if isinstance(document, list) else _column_rows(document)
        for number, row in enumerate(rows, 1):
            yield _row(row, f"element {number}")


def _column_rows(document: Any) -> list[Any]:
    """The rows of an object that holds columns, as pandas writes them; any other document is one row."""
    values = list(document.values()) if isinstance(document, dict) else []
    if values and all(isinstance(value, dict) for value in values):
        values = [list(value.values()) for value in values]
    is_chat = any(isinstance(item, dict) for value in values if isinstance(value, list) for item in value)
    if (
        not values
        or is_chat
        or not all(isinstance(value, list) and len(value) == len(values[0]) for value in values)
    ):
        return [document]
    return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]


def _row(value: Any, place: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"{place} holds {type(value).__name__}, not an object")
    return value


def _csv_cells(file: TextFile, choices: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """A table's cells have no types: all are text, but those that pandas takes for missing."""
    import pandas

    quoting = csv.QUOTE_NONE if file.format == "tsv" and not _is_quoted(file) else csv.QUOTE_MINIMAL
    separator = _SEPARATORS[file.format]
    if file.format == "csv":
        _check_quotes(file)
    with _text_stream(file, newline="") as stream:
        try:
            # Of type str, or "007" would lose its zeros.
            frames = pandas.read_csv(stream, sep=separator, dtype=str, chunksize=_ROWS_AT_A_TIME, quoting=quoting)
            for frame in frames:
                # pandas takes surplus cells for row labels, and shifts the columns without a word.
                if not isinstance(frame.index, pandas.RangeIndex):
                    raise ValueError("its rows have more cells than its first line names columns")
                column = _table_column(file, list(map(str, frame.columns)), choices)
                for value in frame[column]:
                    yield column, value if isinstance(value, str) else None
        except pandas.errors.EmptyDataError:
            return


def _table_column(file: TextFile, names: list[str], choices: Sequence[str]) -> str:
    """The column to read of a table; where it has none, what its first line says of the reason."""
    place, separator = repr(str(file.path)), _SEPARATORS[file.format]
    missing = f"{place} has no column {' or '.join(map(repr, choices))}"
    if any(name in choices for name in names):
        return column_of(names, choices, place)
    if len(names) == 1:
        for other, title in _OTHER_SEPARATORS.items():
            parts = names[0].split(other)
            if other != separator and len(parts) > 1 and _near_name(parts, choices) is not None:
                raise DatasetError(
                    f"{place} separates its cells by {title}, not by {_OTHER_SEPARATORS[separator]}",
                    hint="name it .tsv" if other == "\t" else f"save it with {_OTHER_SEPARATORS[separator]}",
                )
    if _near_name(names, choices) is None and any(len(name) > _NAME_SHOWN for name in names):
        raise DatasetError(
            f"{missing}: its first line begins with {_shown(names[0])}",
            hint="does its first line name columns? add a line that does",
        )
    return column_of(names, choices, place, file.in_folder)


def _is_quoted(file: TextFile) -> bool:
    """Whether quotes around a tab-separated table's cells are marks, as some programs write them, and no text.

    They are marks where each one that opens a cell has one that closes it. Cells that go over several lines then
    have to be the better reading: rows are equally long, and the lines as they stand are not. Reads the whole
    file, as its last cell may tell.
    """
    csv.field_size_limit(_LONGEST_CELL)
    tabs: set[int] = set()

    def lines(stream: IO[str]) -> Iterator[str]:
        for line in stream:
            if line.strip("\r\n"):
                tabs.add(line.count("\t"))
            yield line

    with _text_stream(file, newline="") as stream:
        rows = csv.reader(lines(stream), delimiter="\t", strict=True)
        try:
            lengths = [len(row) for row in rows]
        except csv.Error:
            return False
        if rows.line_num == len(lengths):
            return True
    return len({length for length in lengths if length}) == 1 and (len(tabs) > 1 or tabs == {0})


def _check_quotes(file: TextFile) -> None:
    """Refuses a quote that takes in lines of other rows, up to the next quote or the end of the file.

    A cell of the text ``"5 inches``, say, which readers end where the next quote stands, without a word. Reads the
    whole file.

    Raises:
        DatasetError: names the line in which such a row begins.
    """
    csv.field_size_limit(_LONGEST_CELL)
    separator = _SEPARATORS[file.format]
    lines: list[str] = []  # of the row that is being read

    def recorded(stream: IO[str]) -> Iterator[str]:
        for line in chain(stream, ["\n"]):  # one more, which only an open cell takes in
            lines.append(line)
            yield line

    with _text_stream(file, newline="") as stream:
        first, columns = 1, 0
        for row in csv.reader(recorded(stream), delimiter=separator):
            columns = columns or len(row)
            if len(lines) > 1 and not _is_one_row(lines, separator, columns):
                raise DatasetError(
                    f"{str(file.path)!r} has a quote that is never closed, in the row of line {first}",
                    hint="close it; if it is part of the text, put the cell in quotes and write the inner quote "
                    "twice",
                )
            first += len(lines)
            lines.clear()


def _is_one_row(lines: list[str], separator: str, columns: int) -> bool:
    """Whether a row over several lines was meant to be one: its quotes close where cells end, and it is whole.

    A shorter one is too, where none of its lines is a row by itself.
    """
    try:
        row = next(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error:
        return False
    return len(row) >= columns or all(line.count(separator) != columns - 1 for line in lines)


def _parquet_cells(file: TextFile, choices: Sequence[str]) -> Iterator[tuple[str, Any]]:
    from pyarrow import parquet

    with _byte_stream(file) as stream:
        # Its index stands at the end: only a file that can seek is read by parts.
        table = parquet.ParquetFile(stream if not file.compression else io.BytesIO(stream.read()))
        column = column_of(table.schema_arrow.names, choices, repr(str(file.path)))
        for batch in table.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=[column]):
            yield from ((column, value) for value in batch.column(column).to_pylist())


def _saved_cells(file: TextFile, choices: Sequence[str]) -> Iterator[tuple[str, Any]]:
    import datasets

    for part in file.path.rglob("*.arrow"):
        refuse_pointer(part, DatasetError)
    table = datasets.load_from_disk(str(file.path))
    column = column_of(table.column_names, choices, repr(str(file.path)))
    for row in table.with_format(None).select_columns([column]):
        yield column, row[column]


_READERS = {
    "text": _text_cells,
    "json": _json_cells,
    "csv": _csv_cells,
    "tsv": _csv_cells,
    "parquet": _parquet_cells,
    SAVED: _saved_cells,
}


def _byte_stream(file: TextFile) -> BinaryIO:
    """The content of ``file``, decompressed; every file is opened here."""
    refuse_pointer(file.path, DatasetError)
    if file.compression == ".gz":
        return cast(BinaryIO, gzip.open(file.path))
    if file.compression == ".bz2":
        return cast(BinaryIO, bz2.open(file.path))
    if file.compression == ".xz":
        return cast(BinaryIO, lzma.open(file.path))
    if file.compression == ".zst":
        import pyarrow

        return cast(BinaryIO, pyarrow.input_stream(str(file.path), compression="zstd"))
    if file.compression == ".zip":
        return _only_member(file.path)
    return file.path.open("rb")


def _only_member(path: Path) -> BinaryIO:
    archive = zipfile.ZipFile(path)
    names = _members(archive)
    if len(names) != 1:
        raise DatasetError(f"{str(path)!r} holds {len(names)} files", hint="unpack it, and give the folder")
    return cast(BinaryIO, archive.open(names[0]))


def _members(archive: zipfile.ZipFile) -> list[str]:
    """The names of an archive's files, but for those that a system puts there unseen."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    return [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]


def _text_stream(file: TextFile, newline: str | None = None) -> IO[str]:
    """The text of ``file``: UTF-8, or what its byte-order mark says, which is not part of the text."""
    stream = io.BufferedReader(cast(io.RawIOBase, _byte_stream(file)))
    return io.TextIOWrapper(stream, encoding=_encoding(file, stream.peek(4096)), newline=newline)


def _encoding(file: TextFile, head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if (zero := head.find(b"\0")) >= 0:
        raise DatasetError(
            f"{str(file.path)!r} is no text: byte {zero} is zero",
            hint="if it is UTF-16 without a byte-order mark, save it as UTF-8",
        )
    return "utf-8"


def _encoding_error(file: TextFile, error: UnicodeDecodeError) -> DatasetError:
    """The error for bytes that are no text, with their offset in the whole file."""
    place = f"byte {error.start}"
    # The text stream counts from the start of its buffer: only a second reading tells the byte in the file.
    with _byte_stream(file) as stream:
        decoder, size = codecs.getincrementaldecoder(error.encoding)(), 0
        try:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        # Its object is what the decoder kept of earlier chunks and the last one: it ends at byte ``size``.
        except UnicodeDecodeError as whole_file_error:
            place = f"byte {size - len(whole_file_error.object) + whole_file_error.start}"
    unpacked = ", unpacked," if file.compression else ""
    return DatasetError(
        f"{str(file.path)!r}{unpacked} is not {error.encoding.upper()}: {place}", hint="save it as UTF-8"
    )
