"""The journal of a run on disk: a checked line a record, so that a killed search goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...errors import IdentityError, JournalError
from ...system.documents import read_bytes
from ...system.files import cannot_write, sync_folder, write_all
from ...system.signals import stops_held
from .records import RECORDS, SCHEMA, Header, Identity, JournalContent, LossesRecord, Record

JOURNAL_FILE = "journal.jsonl"
# Each line ends in the start of the SHA-256 over the check of the line before and this record. So a line that
# was changed, lost, doubled or moved shows.
_LINE = re.compile(rb'^(?P<body>\{.*),"check":"(?P<check>[0-9a-f]{16})"\}$', re.DOTALL)
# A killed process loses nothing that it wrote; only a power loss can take what was not yet synced.
_SYNC_SECONDS = 1.0
_LARGEST_FILE = 1 << 32
# A power loss can leave zeros where the disk had not yet got to; no record holds any.
_NEVER_WRITTEN = bytes(16)
_HEADER_BEGINS = b'{"kind":"journal",'
_BEGIN_ANEW = "restore the file, or begin anew with --resume never: the old run is kept then"


@dataclass(frozen=True)
class StoredJournal:
    """A journal as it stands on disk.

    Args:
        identity: None where not even the first record is whole.
        content: what the whole records hold.
        size: bytes of the whole records.
        check: of the last whole record.
        torn: bytes behind the whole records: the beginning of a record whose writer was killed, or
            whatever stands from the zeros on that a power loss left.
    """

    identity: Identity | None
    content: JournalContent
    size: int
    check: str
    torn: int


def read_journal(path: Path) -> StoredJournal | None:
    """Reads and checks a journal, and changes nothing; None if there is none.

    Raises:
        JournalError: a damaged record with others behind it, or one of another schema version; says where.
    """
    try:
        data = read_bytes(path, JournalError, _LARGEST_FILE)
    except FileNotFoundError:
        return None
    identity: Identity | None = None
    content, size, check, line_number = JournalContent(), 0, "", 0
    while size < len(data):
        line_number += 1
        end = data.find(b"\n", size)
        line = data[size:] if end < 0 else data[size:end]
        parts = _LINE.match(line) if end >= 0 else None
        if parts is None or _check(check, parts["body"]) != parts["check"].decode():
            # A kill or a power loss spoils the end of the file only; lines behind a bad one mean damage.
            first_torn = identity is None and end < 0 and _HEADER_BEGINS.startswith(line[: len(_HEADER_BEGINS)])
            if identity is None and not first_torn:
                raise JournalError(
                    f"journal {str(path)!r} is damaged in line 1, at byte 0, or is none",
                    hint=f"{_BEGIN_ANEW}, or give another --out",
                )
            if 0 <= end < len(data) - 1 and _NEVER_WRITTEN not in line:
                raise JournalError(
                    f"journal {str(path)!r} is damaged in line {line_number}, at byte {size}", hint=_BEGIN_ANEW
                )
            break
        record = _record(parts["body"] + b"}", path, line_number, first=identity is None)
        if isinstance(record, Header):
            identity = record.identity
        else:
            content.add(record)
        size, check = end + 1, parts["check"].decode()
    return StoredJournal(identity, content, size, check, len(data) - size)


def _record(body: bytes, path: Path, line_number: int, first: bool) -> Record:
    where = f"journal {str(path)!r}, line {line_number}"
    try:
        document = json.loads(body)
        if first and document.get("schema_version") != SCHEMA:
            raise JournalError(
                f"{where}: schema version {document.get('schema_version')!r}, this program reads {SCHEMA}",
                hint="go on with the version that wrote it, or begin anew with --resume never",
            )
        record = RECORDS.validate_python(document)
    except (ValueError, AttributeError, RecursionError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise JournalError(f"{where}: {problem}", hint=_BEGIN_ANEW) from None
    fits = not isinstance(record, LossesRecord) or (
        len(record.sums) == len(record.patterns)
        and all(len(losses) == len(record.windows) for losses in record.sums)
    )
    if first != isinstance(record, Header) or not fits:
        raise JournalError(f"{where}: not what a search writes there", hint=_BEGIN_ANEW)
    return record


def check_same(stored: Identity, current: Identity, path: Path) -> None:
    """Compares what a journal's losses depend on with what this run's losses would depend on.

    Raises:
        IdentityError: names the first field that differs, and both values.
    """
    # What only the journal names comes first: it may be why others differ.
    for name in (*(name for name in stored if name not in current), *current):
        old, new = stored.get(name), current.get(name)
        if old != new:
            raise IdentityError(
                f"the journal {str(path)!r} is of another search: {name} is {_short(new)}, the journal has "
                f"{_short(old)}",
                hint="run with the old settings to go on, give another --out, or begin anew with --resume never: "
                "the old run is kept then",
            )


class Journal:
    """A journal that is written to.

    Args:
        path: of the file; made if it is not there.
        identity: what the losses depend on.
        stored: what ``read_journal`` made of the file; whatever is torn behind its records is cut off.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, identity: Identity, stored: StoredJournal | None) -> None:
        self.path = path
        self._check = stored.check if stored else ""
        self._size = stored.size if stored else 0
        self._synced = time.monotonic()
        self._handle = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        try:
            self._handle = os.open(path, flags, 0o666)
            os.ftruncate(self._handle, self._size)
            sync_folder(path.parent)
        except OSError as error:
            self.close()
            raise cannot_write(path, error) from error
        if not (stored and stored.identity is not None):
            self.append(Header(identity=dict(identity)))
            self.sync()

    def append(self, record: Record) -> None:
        """Writes a record; a stop by a signal waits for it.

        Raises:
            OutputError: it cannot be written; the records before it stand.
        """
        document = record.model_dump(mode="json")
        body = json.dumps(document, allow_nan=False, separators=(",", ":"))[:-1].encode()
        check = _check(self._check, body)
        line = body + f',"check":"{check}"}}\n'.encode()
        with stops_held():
            try:
                write_all(self._handle, line)
                if time.monotonic() - self._synced > _SYNC_SECONDS:
                    self._sync()
            except OSError as error:
                self._cut_back()
                raise cannot_write(self.path, error) from error
            self._size, self._check = self._size + len(line), check

    def sync(self) -> None:
        """Brings what was written to the disk.

        Raises:
            OutputError: it cannot be.
        """
        try:
            self._sync()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Writes nothing more."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _sync(self) -> None:
        os.fsync(self._handle)
        self._synced = time.monotonic()

    def _cut_back(self) -> None:
        """Takes back a record that was written in part; if even that fails, the next search does."""
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            return


def _check(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:16]


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text[:200]
