"""What is exported: the finished pictures of a run folder in the order of their numbers, cut into shards.

The order and the shards follow from the records alone. The lines wait in a temporary file, so that a million of them
need little memory.

    with Selection(store, take=lambda identity: True) as selection:
        for shard in selection.shards(256 * 10**6):
            ...
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import orjson

from runner.files import writing_to
from runner.folder.ledger import iterate_records
from runner.folder.store import Store
from runner.record import DONE, part

ID_SHOWN = 12  # digits of an id in a key


class Picked(NamedTuple):
    """A finished picture: its number, its id, its size in bytes, and where its line waits. Sorted as it is exported."""

    number: int
    id: str
    bytes: int
    place: int
    length: int

    @property
    def key(self) -> str:
        """What its files are called. It has no dot: a reader of webdataset takes what is behind one for the type."""
        return f"{self.number:09d}-{self.id[:ID_SHOWN]}"


class Shard(NamedTuple):
    """The pictures that are exported together; `made_of` is the SHA-256 of their keys and their lines."""

    number: int
    pictures: Sequence[Picked]
    made_of: str


class Selection:
    """The newest record of each id that `take` lets through, if it is done."""

    def __init__(self, store: Store, take: Callable[[str], bool]) -> None:
        with writing_to(tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.pictures = sorted(self._read(store, take))
            with writing_to(tempfile.gettempdir()):
                self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def line(self, picked: Picked) -> bytes:
        """The record's line; several threads may ask at once."""
        return os.pread(self._file.fileno(), picked.length, picked.place)

    def shards(self, most: int) -> Iterator[Shard]:
        """The pictures in shards of at most so many bytes; one that is larger has a shard of its own."""
        begun, size, number = 0, 0, 0
        for end, picked in enumerate(self.pictures):
            if end > begun and size + picked.bytes > most:
                yield self._shard(number, self.pictures[begun:end])
                begun, size, number = end, 0, number + 1
            size += picked.bytes
        if self.pictures:
            yield self._shard(number, self.pictures[begun:])

    def _shard(self, number: int, pictures: Sequence[Picked]) -> Shard:
        made_of = hashlib.sha256()
        for picked in pictures:
            made_of.update(b"%b %b\n" % (picked.key.encode(), self.line(picked)))
        return Shard(number, pictures, made_of.hexdigest())

    def _read(self, store: Store, take: Callable[[str], bool]) -> list[Picked]:
        newest: dict[str, Picked] = {}
        end = 0
        for record in iterate_records(store):
            identity = record["id"]
            if not take(identity):
                continue
            if record["status"] != DONE:
                newest.pop(identity, None)
                continue
            number = part(record, "item").get("number")
            number = number if type(number) is int and number >= 0 else 0
            line = orjson.dumps(record)
            with writing_to(tempfile.gettempdir()):
                self._file.write(line)
            newest[identity] = Picked(number, identity, record["bytes"], end, len(line))
            end += len(line)
        return list(newest.values())
