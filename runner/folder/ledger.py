"""The ledger of a run folder: one line an item, appended as it is finished, read to know what is left to do.

It holds the folder, mends a tail that was torn when a process died, and says which items are finished, which
have failed how often, and in which ways pictures were made. It does not decide what a record contains.

    with Ledger(store) as ledger:
        if not ledger.is_done(identity):
            ledger.append({"id": identity, "status": "done", "image": "images/...", "bytes": 1234, ...})
        ledger.flush()
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

import orjson

from runner.errors import Location, ManifestError, NoRunFolder
from runner.files import expanded
from runner.folder.names import RECORDS, TORN
from runner.folder.store import Store
from runner.folder.ways import Way, way_of
from runner.record import VERSION, is_newer, is_record

log = logging.getLogger(__name__)


class Index:
    """What the records of a run folder say is finished; `read_index` makes one from the file.

    `ways` are those in which its pictures were made. If it is `deep`, a picture counts only if its SHA-256 is right.
    `hashes` keeps each picture's SHA-256 without that.
    """

    def __init__(self, store: Store, *, deep: bool = False, hashes: bool = False) -> None:
        self.store = store
        self.ways: set[Way] = set()
        self._deep, self._hashes = deep, deep or hashes
        # For a million records, so no objects of their own: id -> (path, bytes, SHA-256 if kept) of the newest record
        # that is done, and path -> id of the newest record that wrote it.
        self._images: dict[str, tuple[str, int, str]] = {}
        self._owners: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._told: tuple[object, ...] = ()  # of the newest record's way
        self._folds = store.folds_names()  # so that two names may be one file

    def is_done(self, identity: str) -> bool:
        """Whether the newest record of this id says so, and its picture is there and still its own."""
        image = self._images.get(identity)
        if image is None:
            return False
        path, size, sha256 = image
        if self.owner(path) != identity:
            return False
        # A remote store puts a picture whole, and its record after it, so only a deep look asks for the file.
        if not self.store.remote and self.store.size(path) != size:
            return False
        if not self._deep:
            return True
        try:
            with self.store.open(path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def failures(self, identity: str) -> int:
        """How often this id has failed since it was last done."""
        return self._failures.get(identity, 0)

    def images(self) -> dict[str, str]:
        """The path of each id whose newest record is done, whatever has become of its file."""
        return {identity: path for identity, (path, *_) in self._images.items()}

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the picture of each of these ids, where an index keeps them."""
        return {identity: sha256 for identity, (*_, sha256) in self._images.items()}

    def lost(self, newest: int) -> Iterator[str]:
        """The paths among those of the newest so many pictures that are not there any more."""
        expected = {
            path: size
            for identity, (path, size, _) in islice(reversed(self._images.items()), newest)
            if self.owner(path) == identity
        }
        found = self.store.sizes(expected)
        return (path for path, size in expected.items() if found[path] != size)

    def owner(self, path: str) -> str | None:
        """The id of the newest item that wrote this path, or one that is the same file on this disk."""
        return self._owners.get(self._key(path))

    def claim(self, path: str, identity: str) -> str:
        """Where an item's picture may be written: the path, or one with its id where another item's picture stands."""
        if self.owner(path) not in (None, identity):
            path = str((own := PurePosixPath(path)).with_stem(f"{own.stem}_{identity[:12]}"))
        self._owners[self._key(path)] = identity
        return path

    def _key(self, path: str) -> str:
        return path.casefold() if self._folds else path

    @property
    def count(self) -> int:
        """How many ids have been recorded."""
        return len(self._images) + len(self._failures)

    def note(self, record: Mapping[str, Any]) -> None:
        """Take a record into account."""
        identity = record["id"]
        before = self._images.pop(identity, None)
        if before is not None and self.owner(before[0]) == identity:
            del self._owners[self._key(before[0])]
        if record["status"] == "failed":
            self._failures[identity] = self.failures(identity) + 1
            return
        self._failures.pop(identity, None)
        sha256 = str(record.get("sha256")) if self._hashes else ""
        self._images[identity] = (record["image"], record["bytes"], sha256)
        self._owners[self._key(record["image"])] = identity
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
    """The records of one run folder, which it holds as long as it is entered."""

    def __init__(self, store: Store, *, deep: bool = False, lock: bool = True) -> None:
        super().__init__(store, deep=deep)
        self._locks = lock
        self._held: AbstractContextManager[None] | None = None
        self.heard: Callable[[Mapping[str, Any]], object] | None = None  # is told of each record that is appended

    def __enter__(self) -> Self:
        held = self.store.hold(lock=self._locks)
        held.__enter__()
        try:
            self.store.append(RECORDS, b"")  # the file is there from now on
            self._folds = self.store.folds_names()
            self._read()
        except BaseException as error:
            held.__exit__(type(error), error, error.__traceback__)
            raise
        self._held = held
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.__exit__(kind, error, trace)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record, as `Record.to_dict` gives it. After a crash it is there or not, never half."""
        if not is_record(record):
            raise ValueError(f"not a record: {dict(record)}")
        self.store.append(RECORDS, orjson.dumps(record) + b"\n")
        self.note(record)
        if self.heard:
            self.heard(record)

    def flush(self) -> None:
        """Wait until the disk has every record; once a wave, since for each record it would be the bottleneck."""
        self.store.flush()

    def _read(self) -> None:
        for known in (self._images, self._owners, self._failures, self.ways):
            known.clear()
        if self.store.size(RECORDS) < 0:
            return
        end = 0
        for record, line_end, torn in _lines(self.store):
            if record is not None:
                self.note(record)
            if not torn:
                end = line_end
        if end < self.store.size(RECORDS):
            size = self.store.cut(RECORDS, end, TORN)
            now = f"({size} bytes); it was moved to {TORN}" if size else "and is skipped"
            log.warning("%s/%s: the last line was torn %s", self.store, RECORDS, now)


def read_index(store: Store, *, hashes: bool = False, must_exist: bool = False) -> Index:
    """What is finished in a folder, which needn't be there but if it must; it takes no lock and mends nothing.

    Raises:
        NoRunFolder: it is not there, but must.
    """
    index = Index(store, hashes=hashes)
    if must_exist or store.size(RECORDS) >= 0:
        for record in iterate_records(store):
            index.note(record)
    return index


def iterate_records(store: Store) -> Iterator[dict[str, Any]]:
    """The records of a run folder, oldest first; it takes no lock and mends nothing, so a run may be going on."""
    _must_have_records(store)
    return (record for record, _, _ in _lines(store) if record is not None)


def numbered_records(store: Store) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Every line that isn't blank, by its number from 1 on: its record, or None where it isn't one."""
    _must_have_records(store)
    for number, text in enumerate(store.lines(RECORDS), start=1):
        if text.strip():
            yield number, _parse(text, store, number)


def _must_have_records(store: Store) -> None:
    if not store.exists():
        raise NoRunFolder(f"there is no run folder '{store}'")
    if store.size(RECORDS) < 0:
        raise NoRunFolder(f"'{store}' is not a run folder: it has no {RECORDS}")


def _lines(store: Store) -> Iterator[tuple[dict[str, Any] | None, int, bool]]:
    """For each line its record if it is one, where it ends, and whether it is torn: not whole, nothing behind it.

    Broken lines in the middle are reported once, at the end.
    """
    broken: list[int] = []
    end, size = 0, store.size(RECORDS)
    for number, text in enumerate(store.lines(RECORDS), start=1):
        end += len(text)
        record = _parse(text, store, number)
        damaged = record is None and bool(text.strip())
        torn = damaged and (end >= size or not text.endswith(b"\n"))
        if damaged and not torn:
            broken.append(number)
        yield record, end, torn
    if broken:
        log.warning("%s/%s: %d broken lines were skipped, the first is line %d", store, RECORDS, len(broken), broken[0])


def _parse(text: bytes, store: Store, number: int) -> dict[str, Any] | None:
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
        raise ManifestError(message, Location(expanded(f"{store}/{RECORDS}"), number, 1))
    found: dict[str, Any] = record
    return found
