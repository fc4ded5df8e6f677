"""Reads documents from a hub dataset, local files or a folder of them: the distinct ones, well shuffled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, IndexcacheError, first_line
from ..system.files import find_path
from .folders import dataset_files
from .rows import Cell, TextFile, cells, column_of, text_file

_TEXT_COLUMNS = ("text", "content")
_CHAT_COLUMNS = ("messages",)
_SHUFFLE_BUFFER = 1000
_NEEDED_IN_A_MESSAGE = {"role", "content"}


@dataclass(frozen=True)
class TextSource:
    """Where calibration text comes from.

    Args:
        dataset: a local file, a folder of files, or the name of a dataset on the hub.
        subset: the dataset's configuration, where it has several; "all" reads all that a folder's card names.
        split: the dataset's split, train if not given; "all" reads all that a folder holds.
        column: the column to read; found by its name where not given.
        revision: branch, tag or commit of the hub dataset.
    """

    dataset: str
    subset: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that may hold the text, the first that is there counts."""
        return (self.column,) if self.column else (*_TEXT_COLUMNS, *_CHAT_COLUMNS)


class Documents:
    """Documents, streamed: read only as far as the caller goes, shuffled through a buffer of them.

    A row that holds nothing or only white space is no document. One that repeats an earlier document, white
    space aside, is left out, so that no text can stand on both sides of a split.

    Args:
        source: what to read.
        tokenizer: renders chat messages through its chat template.
        seed: fixes the order.

    Raises:
        DatasetError: nothing there; the rest while reading.
    """

    def __init__(self, source: TextSource, tokenizer: Any, seed: int) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._seed = seed
        path = find_path(source.dataset)
        if path is None and _looks_like_a_path(source.dataset):
            raise DatasetError(
                f"dataset {source.dataset!r} does not exist",
                hint="give a file, a folder or a hub name with --dataset",
            )
        self._local = path is not None
        self._parts, self._notes = _local_parts(source, path) if path else ([_load(source)], [])
        self.rows = 0
        self.blank = 0

    @property
    def notes(self) -> list[str]:
        """What a user should know of what was not read, and of what was read so far."""
        if not self.blank:
            return self._notes
        return [*self._notes, f"{self.blank} of {self.rows} rows read hold no text and are skipped"]

    def __iter__(self) -> Iterator[str]:
        """Reads from the beginning.

        Raises:
            DatasetError: an unreadable file, a missing column, a value that is not text, or no text at all.
        """
        self.rows = self.blank = 0
        digests: set[bytes] = set()
        column = None
        for cell in _in_turn([self._cells(part) for part in self._parts]):
            self.rows += 1
            column = cell.column
            text = _text(cell, self._tokenizer)
            if not text.strip():
                self.blank += 1
                continue
            # Digests instead of texts: 32 bytes a document, however long it is.
            # Hashes, as texts could be more than memory holds; white space aside, as copies differ in it.
            digest = hashlib.sha256(" ".join(text.split()).encode("utf-8")).digest()
            if digest not in digests:
                digests.add(digest)
                yield text
        if self.rows and self.rows == self.blank:
            raise DatasetError(
                f"dataset {self._source.dataset!r} holds nothing in column {column!r}: {self.rows} rows, "
                "0 documents with text",
                hint="name another column with --column",
            )

    def _cells(self, part: Any) -> Iterator[Cell]:
        place = f"dataset {self._source.dataset!r}"
        column: str | None = None
        for row in _rows(part.shuffle(seed=self._seed, buffer_size=_SHUFFLE_BUFFER), place):
            if self._local:
                yield Cell(**row)
                continue
            column = column or column_of(row, self._source.columns, place)
            yield Cell(row.get(column), column, self._source.dataset)


def _in_turn(parts: list[Iterator[Cell]]) -> Iterator[Cell]:
    """A cell of each part in turn, over and over, until all parts have run out."""
    while parts:
        for part in list(parts):
            try:
                yield next(part)
            except StopIteration:
                parts.remove(part)


def _local_parts(source: TextSource, path: Path) -> tuple[list[Any], list[str]]:
    """A stream of cells for the files of each format, and what to know of the files that are not read."""
    for option in ("revision", *(("subset", "split") if path.is_file() else ())):
        if getattr(source, option) is not None:
            raise DatasetError(
                f"dataset {source.dataset!r} is local and has no {option}", hint=f"leave --dataset-{option} out"
            )
    content = dataset_files(path, source.split, source.subset)
    formats: dict[str, list[TextFile]] = {}
    for file in content.files:
        formats.setdefault(file.format, []).append(file)
    return [_stream(files, source) for files in formats.values()], content.notes


def _stream(files: list[TextFile], source: TextSource) -> Any:
    datasets = _datasets_library()
    try:
        return datasets.IterableDataset.from_generator(
            _rows_of, gen_kwargs={"files": files, "columns": source.columns}
        )
    except OSError as error:
        raise _open_error(source, error, "check the files") from error


def _rows_of(files: list[TextFile], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from map(vars, cells(file, columns))


def _looks_like_a_path(name: str) -> bool:
    # A name on the hub has one slash at most: owner/name.
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or text_file(Path(name)) is not None


def _load(source: TextSource) -> Any:
    """The hub dataset, streamed; its columns but the one with text are not read where it says which it has."""
    datasets = _datasets_library()
    try:
        part = datasets.load_dataset(
            source.dataset,
            streaming=True,
            name=source.subset,
            split=source.split or "train",
            revision=source.revision,
        )
        if (columns := part.column_names) is None:
            return part
        return part.select_columns([column_of(columns, source.columns, f"dataset {source.dataset!r}")])
    except IndexcacheError:
        raise
    except Exception as error:  # datasets raises a different class for every way a name can be wrong
        raise _open_error(source, error, "check the name, the split and the network") from error


def _datasets_library() -> Any:
    import datasets

    # Its readers log what they also raise.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _open_error(source: TextSource, error: Exception, hint: str) -> DatasetError:
    if isinstance(error, OSError) and error.filename:
        hint = "the datasets library keeps its cache under HF_HOME, which has to be writable"
    return DatasetError(
        f"cannot open dataset {source.dataset!r}: {first_line(error)}", hint=_package_hint(error) or hint
    )


def _package_hint(error: Exception) -> str:
    """How to install what the datasets library lacks for compressed files of the hub; nothing for other errors."""
    message = str(error).lower()
    return "pip install zstandard" if "zstd" in message or "zstandard" in message else ""


def _rows(part: Any, place: str) -> Iterator[Mapping[str, Any]]:
    rows, count = iter(part), 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except IndexcacheError:
            raise
        except Exception as error:  # any of the readers' own errors: broken JSON, a lost connection, ...
            raise DatasetError(
                f"{place} cannot be read on after {count} rows: {first_line(error)}",
                hint=_package_hint(error) or "check the file or the network",
            ) from error
        count += 1
        yield row


def _text(cell: Cell, tokenizer: Any) -> str:
    value = cell.value
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return _with_whole_characters(value)
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return _with_whole_characters(_rendered(value, cell, tokenizer))
    raise DatasetError(
        f"a row of {cell.place!r} holds {type(value).__name__} in column {cell.column!r}, not text",
        hint="drop such rows, or name another column with --column",
    )


def _with_whole_characters(text: str) -> str:
    """``text`` with a replacement character for each half of one, which JSON can escape and no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _rendered(messages: list[dict[str, Any]], cell: Cell, tokenizer: Any) -> str:
    if not all(message.keys() >= _NEEDED_IN_A_MESSAGE for message in messages):
        raise DatasetError(
            f"column {cell.column!r} of {cell.place!r} holds messages without role and content",
            hint="rename their keys, or name a text column with --column",
        )
    if not getattr(tokenizer, "chat_template", None):
        raise DatasetError(
            f"column {cell.column!r} of {cell.place!r} holds chat messages, but the model's tokenizer "
            "has no chat template",
            hint="use a dataset with a text column",
        )
    # Tables give every message all keys that any has: what is null there is not in the message.
    dense = [
        {key: part for key, part in message.items() if part is not None or key in _NEEDED_IN_A_MESSAGE}
        for message in messages
    ]
    try:
        return str(tokenizer.apply_chat_template(dense, tokenize=False))
    except Exception as error:  # templates are programs of the checkpoint and fail in their own ways
        raise DatasetError(
            f"a row of {cell.place!r} does not fit the chat template: {first_line(error)}"
        ) from error
