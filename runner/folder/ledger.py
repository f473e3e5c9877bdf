"""The ledger of a run folder: one line an item, appended as it is finished, read to know what is left to do.

It holds the folder's lock, mends a tail that was torn when a process died, and says which items are finished, which
have failed how often, and in which ways pictures were made. It does not decide what a record contains.

    with Ledger(folder) as ledger:
        if not ledger.is_done(identity):
            ledger.append({"id": identity, "status": "done", "image": "images/...", "bytes": 1234, ...})
        ledger.flush()
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Self

import orjson
from filelock import FileLock, Timeout

from runner.errors import FolderUnwritable, Location, ManifestError, NoRunFolder, RunFolderHeld
from runner.files import flush_folder, sha256_of, write_all, writing_to
from runner.folder.names import LOCK, RECORDS, TORN
from runner.folder.ways import Way, way_of
from runner.record import VERSION, is_newer, is_record

LONGEST_LINE = 1 << 24  # bytes
log = logging.getLogger(__name__)


class Index:
    """What the records of a run folder say is finished; `read_index` makes one from the file.

    `ways` are those in which its pictures were made. If it is `deep`, a picture counts only if its SHA-256 is right.
    """

    def __init__(self, folder: Path, *, deep: bool = False) -> None:
        self.folder = folder
        self.ways: set[Way] = set()
        self._deep = deep
        # For a million records, so no objects of their own: id -> (path, bytes, SHA-256 if deep) of the newest record
        # that is done, and path -> id of the newest record that wrote it.
        self._images: dict[str, tuple[str, int, str]] = {}
        self._owners: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._told: tuple[object, ...] = ()  # of the newest record's way

    def is_done(self, identity: str) -> bool:
        """Whether the newest record of this id says so, and its picture is there and still its own."""
        image = self._images.get(identity)
        if image is None:
            return False
        path, size, sha256 = image
        file = f"{self.folder}/{path}"  # a Path takes longer than the system's answer
        if self._owners.get(path) != identity or _size_of(file) != size:
            return False
        if not self._deep:
            return True
        try:
            return sha256_of(file) == sha256
        except OSError:
            return False

    def failures(self, identity: str) -> int:
        """How often this id has failed since it was last done."""
        return self._failures.get(identity, 0)

    def images(self) -> dict[str, str]:
        """The path of each id whose newest record is done, whatever has become of its file."""
        return {identity: path for identity, (path, *_) in self._images.items()}

    def image_paths(self) -> Mapping[str, str]:
        """For each path that a finished item wrote, the id of the newest that did: two must not meet in a file."""
        return MappingProxyType(self._owners)

    def note(self, record: Mapping[str, Any]) -> None:
        """Take a record into account."""
        identity = record["id"]
        before = self._images.pop(identity, None)
        if before is not None and self._owners.get(before[0]) == identity:
            del self._owners[before[0]]
        if record["status"] == "failed":
            self._failures[identity] = self.failures(identity) + 1
            return
        self._failures.pop(identity, None)
        self._images[identity] = (record["image"], record["bytes"], str(record.get("sha256")) if self._deep else "")
        self._owners[record["image"]] = identity
        self._note_way(record)

    def _note_way(self, record: Mapping[str, Any]) -> None:
        item = record.get("item")
        size = (item.get("width"), item.get("height")) if isinstance(item, dict) else None
        told = (record.get("model"), record.get("run"), record.get("env"), size, "rerendered" in record)
        if told == self._told:  # as nearly always
            return
        self._told = told
        if way := way_of(record):
            self.ways.add(way)


class Ledger(Index):
    """The records of one run folder, held by one process at a time; the lock vanishes with the process."""

    def __init__(self, folder: Path, *, deep: bool = False) -> None:
        super().__init__(folder, deep=deep)
        # Not bound to a thread: a server may leave the ledger in another thread than it entered it.
        self._lock = FileLock(folder / LOCK, blocking=False, thread_local=False)
        self._descriptor = -1

    def __enter__(self) -> Self:
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self._read()
                self._open()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._lock.release()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record, as `Record.to_dict` gives it. After a crash it is there or not, never half."""
        if not is_record(record):
            raise ValueError(f"not a record: {dict(record)}")
        line = orjson.dumps(record) + b"\n"
        with writing_to(self.folder):
            start = self._size()
            try:
                write_all(self._descriptor, line)
            except BaseException:
                # A disk that became full may have taken the beginning of the line.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, start)
                raise
        self.note(record)

    def flush(self) -> None:
        """Wait until the disk has every record; once a wave, since for each record it would be the bottleneck."""
        with writing_to(self.folder):
            os.fsync(self._descriptor)

    def _size(self) -> int:
        """The file's size. A file that was removed or moved away takes writes all the same, but they are lost."""
        ours, path = os.fstat(self._descriptor), self.folder / RECORDS
        if not os.path.samestat(ours, path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return ours.st_size

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            message = (
                f"the run folder '{self.folder}' is held by another process; wait for it, or choose another 'out='"
            )
            raise RunFolderHeld(message) from None

    def _read(self) -> None:
        for known in (self._images, self._owners, self._failures, self.ways):
            known.clear()
        path = self.folder / RECORDS
        if not path.exists():
            return
        if not path.is_file():  # opening a pipe would wait for ever
            raise FolderUnwritable(f"'{path}' is not a file; choose another 'out='")
        end = 0
        for record, line_end, torn in _lines(path):
            if record is not None:
                self.note(record)
            if not torn:
                end = line_end
        if end < path.stat().st_size:
            self._set_aside(path, end)

    def _set_aside(self, path: Path, end: int) -> None:
        with path.open("r+b") as records, (self.folder / TORN).open("ab") as torn:
            size = records.seek(0, os.SEEK_END) - end
            records.seek(end)
            shutil.copyfileobj(records, torn)  # a crash may leave gigabytes of zeros
            torn.write(b"\n")
            torn.flush()
            os.fsync(torn.fileno())
            records.truncate(end)
        log.warning("%s: the last line was torn (%d bytes); it was moved to %s", path, size, TORN)

    def _open(self) -> None:
        path = self.folder / RECORDS
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        flush_folder(self.folder)


def read_index(folder: Path) -> Index:
    """What is finished in a folder, which needn't be there; it takes no lock and mends nothing."""
    index = Index(folder)
    if (folder / RECORDS).is_file():
        for record in iterate_records(folder):
            index.note(record)
    return index


def iterate_records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run folder, oldest first; it takes no lock and mends nothing, so a run may be going on."""
    return (record for record, _, _ in _lines(_records_file(folder)) if record is not None)


def numbered_records(folder: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Every line that isn't blank, by its number from 1 on: its record, or None where it isn't one."""
    path = _records_file(folder)
    with path.open("rb") as file:
        for number, text in enumerate(_bounded(file), start=1):
            if text.strip():
                yield number, _parse(text, path, number)


def _records_file(folder: Path) -> Path:
    path = folder / RECORDS
    if not folder.is_dir():
        raise NoRunFolder(f"there is no run folder '{folder}'")
    if not path.is_file():
        raise NoRunFolder(f"'{folder}' is not a run folder: it has no {RECORDS}")
    return path


def _lines(path: Path) -> Iterator[tuple[dict[str, Any] | None, int, bool]]:
    """For each line its record if it is one, where it ends, and whether it is torn: not whole, nothing behind it.

    Broken lines in the middle are reported once, at the end.
    """
    broken: list[int] = []
    end = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, text in enumerate(_bounded(file), start=1):
            end += len(text)
            record = _parse(text, path, number)
            damaged = record is None and bool(text.strip())
            torn = damaged and (end >= size or not text.endswith(b"\n"))
            if damaged and not torn:
                broken.append(number)
            yield record, end, torn
    if broken:
        log.warning("%s: %d broken lines were skipped, the first is line %d", path, len(broken), broken[0])


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """The file's lines; of what is longer than a record can be, pieces, none of which is one."""
    return iter(partial(file.readline, LONGEST_LINE), b"")


def _parse(text: bytes, path: Path, number: int) -> dict[str, Any] | None:
    if not text.endswith(b"\n"):
        return None
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not is_record(record):
        return None
    if is_newer(record):
        message = f"the record is of version {record['version']}; this runner reads version {VERSION}, take a newer one"
        raise ManifestError(message, Location(path, number, 1))
    found: dict[str, Any] = record
    return found


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return -1
