"""Reads documents from a hub dataset, local files or a folder of them, through the datasets library."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, first_line
from ..files import find_path, refuse_pointer

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_COMPRESSION = {".gz", ".xz", ".zst", ".bz2"}
_TEXT_COLUMNS = ("text", "content")
_CHAT_COLUMNS = ("messages",)
_SHUFFLE_BUFFER = 1000


@dataclass(frozen=True)
class TextSource:
    """Where calibration text comes from.

    Args:
        dataset: a local file, a folder of files, or the name of a dataset on the hub.
        subset: the hub dataset's configuration, where it has several.
        split: the hub dataset's split, train if not given.
        column: the column to read; found by its name where not given.
        revision: branch, tag or commit of the hub dataset.
    """

    dataset: str
    subset: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None


def read_documents(source: TextSource, tokenizer: Any, seed: int) -> Iterator[str]:
    """Yields the distinct documents of ``source`` in an order fixed by ``seed``.

    Streams: a dataset is read only as far as the caller goes, shuffled through a buffer of documents.
    A document that repeats an earlier one, white space aside, is left out, so that no text can stand
    on both sides of a split.

    Args:
        source: what to read.
        tokenizer: renders chat messages through its chat template.
        seed: of the order.

    Raises:
        DatasetError: nothing there, an unreadable file, a missing column, a value that is not text.
    """
    seen: set[bytes] = set()
    for text in _in_turn([_texts(part, source, tokenizer, seed) for part in _open(source)]):
        digest = hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield text


def _texts(part: Any, source: TextSource, tokenizer: Any, seed: int) -> Iterator[str]:
    column: str | None = None
    for row in _rows(part.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER), source):
        column = column or _column(row, source)
        yield _text(row.get(column), column, source, tokenizer)


def _in_turn(parts: list[Iterator[str]]) -> Iterator[str]:
    """One from each, over and over, until all have run out."""
    while parts:
        for part in list(parts):
            try:
                yield next(part)
            except StopIteration:
                parts.remove(part)


def _open(source: TextSource) -> list[Any]:
    if (path := find_path(source.dataset)) is not None:
        for option in ("subset", "split", "revision"):
            if getattr(source, option) is not None:
                raise DatasetError(
                    f"dataset {source.dataset!r} is local and has no {option}",
                    hint=f"leave --dataset-{option} out",
                )
        return [_load(builder, source, files=files) for builder, files in _local_files(path).items()]
    if _looks_like_a_path(source.dataset):
        raise DatasetError(
            f"dataset {source.dataset!r} does not exist", hint="give a file, a folder or a hub name"
        )
    return [_load(source.dataset, source)]


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in _BUILDERS


def _load(builder: str, source: TextSource, files: list[str] | None = None) -> Any:
    import datasets

    # Its readers log what they also raise.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    options: dict[str, Any] = {"streaming": True}
    if files is None:
        options |= {"name": source.subset, "split": source.split or "train", "revision": source.revision}
    else:
        options |= {"data_files": [glob.escape(file) for file in files], "split": "train"}
        if builder == "text":
            options["sample_by"] = "document"
    try:
        return datasets.load_dataset(builder, **options)
    except Exception as error:  # datasets raises a different class for every way a name can be wrong
        hint = "check the name, the split and the network" if files is None else "check the file's format"
        if isinstance(error, OSError) and error.filename and error.filename not in (files or ()):
            hint = "the datasets library keeps its cache under HF_HOME, which has to be writable"
        raise DatasetError(f"cannot open dataset {source.dataset!r}: {first_line(error)}", hint=hint) from error


def _local_files(path: Path) -> dict[str, list[str]]:
    """Files under ``path`` by the builder that reads them, in name order."""
    found: dict[str, list[str]] = {}
    empty = False
    refuse_pointer(path, DatasetError)
    candidates = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in candidates:
        suffixes = [suffix for suffix in file.suffixes if suffix not in _COMPRESSION]
        builder = _BUILDERS.get(suffixes[-1].lower()) if suffixes else None
        if builder and not any(part.startswith(".") for part in file.relative_to(path).parts):
            refuse_pointer(file, DatasetError)
            if file.stat().st_size:
                found.setdefault(builder, []).append(str(file.resolve()))
            empty = not file.stat().st_size
    if not found and empty:
        raise DatasetError(f"dataset {str(path)!r} is empty", hint="give a file with text")
    if not found:
        raise DatasetError(
            f"dataset {str(path)!r} holds no text that can be read",
            hint=f"files may end in {', '.join(sorted(_BUILDERS))}, also compressed",
        )
    return found


def _rows(part: Any, source: TextSource) -> Iterator[Mapping[str, Any]]:
    rows, read = iter(part), 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # any of the readers' own errors: broken JSON, a lost connection, ...
            raise DatasetError(
                f"dataset {source.dataset!r} cannot be read on after {read} rows: {first_line(error)}",
                hint="check the file or the network",
            ) from error
        read += 1
        yield row


def _column(row: Mapping[str, Any], source: TextSource) -> str:
    wanted = [source.column] if source.column else [*_TEXT_COLUMNS, *_CHAT_COLUMNS]
    for name in wanted:
        if name in row:
            return name
    raise DatasetError(
        f"dataset {source.dataset!r} has no column {' or '.join(map(repr, wanted))}",
        hint=f"it has {', '.join(map(repr, row))}: name one with --column",
    )


def _text(value: Any, column: str, source: TextSource, tokenizer: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        if not all({"role", "content"} <= message.keys() for message in value):
            raise DatasetError(
                f"column {column!r} of dataset {source.dataset!r} holds messages without role and content",
                hint="rename their keys, or name a text column with --column",
            )
        if not getattr(tokenizer, "chat_template", None):
            raise DatasetError(
                f"column {column!r} of dataset {source.dataset!r} holds chat messages, but the model's tokenizer "
                "has no chat template",
                hint="use a dataset with a text column",
            )
        try:
            return str(tokenizer.apply_chat_template(value, tokenize=False))
        except Exception as error:  # templates are programs of the checkpoint and fail in their own ways
            raise DatasetError(
                f"a row of dataset {source.dataset!r} does not fit the chat template: {first_line(error)}"
            ) from error
    held = "nothing" if value is None else type(value).__name__
    raise DatasetError(
        f"a row of dataset {source.dataset!r} holds {held} in column {column!r}, not text",
        hint="drop such rows, or name another column with --column",
    )
