"""Files that grow, in a store of objects that can't: each is made of numbered segments, which are put once and stay.

`records.jsonl` is `records/00000000.jsonl`, `records/00000001.jsonl` and so on. When there are 64, an object with all
their lines is put beside them, `records/00000000-00000063.jsonl`, so that few requests read many records. Nothing is
ever removed, so that whoever reads meanwhile misses nothing. An object `records.jsonl` itself, as somebody may have
copied it there, comes before all segments.

    records = Growing(bucket, "records.jsonl")
    records.append(line)
    records.flush()
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BufferedReader, BytesIO, RawIOBase
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from runner.errors import FolderUnwritable
from runner.folder.bucket import Bucket, Exists, Unconditional

GROUP = 64  # segments that are put together once more
AHEAD = 16  # segments that are read at the same time
LARGE = 1 << 23  # bytes; a larger one, which isn't ours, is read by itself


class Segment(NamedTuple):
    """An object, and which numbers it holds; the file itself, if it is an object, holds none."""

    name: str
    first: int
    last: int
    size: int


class Growing:
    """A file that grows. Appending and flushing are for whoever holds the folder."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        path = PurePosixPath(name)
        self._bucket, self.name = bucket, name
        self.folder, self._suffix = f"{path.stem}", path.suffix
        self._pattern = re.compile(rf"{re.escape(path.stem)}/(\d{{8}})(?:-(\d{{8}}))?{re.escape(path.suffix)}")
        self._known: list[Segment] | None = None  # while it is written here
        self._waiting: list[bytes] = []
        self._appending = threading.Lock()

    def segments(self) -> list[Segment]:
        """Those that make up the file, in order; those that a larger one holds are left out."""
        return self._known if self._known is not None else self._find()

    def is_part(self, name: str) -> bool:
        """Whether an object is a segment of this file."""
        return self._pattern.fullmatch(name) is not None

    def size(self) -> int:
        """In bytes, with what waits; -1 where there is no such file."""
        if not (segments := self.segments()) and self._known is None:
            return -1
        return sum(each.size for each in segments) + sum(map(len, self._waiting))

    def append(self, data: bytes) -> None:
        """Adds to the end; it waits here for the next flush."""
        with self._appending:
            if self._known is None:
                self._known = self._find()
            if data:
                self._waiting.append(data)

    def flush(self, *, conditional: bool = True) -> None:
        """Puts what waits as one segment, and an empty one if there is none yet; what can't be put goes on waiting."""
        with self._appending:
            while self._known is not None and (self._waiting or not self._known):
                data = b"".join(self._waiting)
                number = self._known[-1].last + 1 if self._known else 0
                name = self._place(number)
                size = self._put(name, data, conditional=conditional)
                self._known.append(Segment(name, number, number, size))
                self._waiting = [data[size:]] if size < len(data) else []
                if (number + 1) % GROUP == 0:
                    self._join(number + 1 - GROUP, number)

    def forget(self) -> None:
        """Ends the writing; what could not be put is lost."""
        self._known = None
        self._waiting.clear()

    def lines(self, longest: int) -> Iterator[bytes]:
        """The lines with their ends, in pieces of at most `longest` bytes; no line goes on in the next segment."""
        segments = self.segments()
        if not segments and self._known is None:
            raise FileNotFoundError(self.name)
        for reader in self._read(segments):
            yield from iter(partial(reader.readline, longest), b"")
        yield from iter(partial(BytesIO(b"".join(self._waiting)).readline, longest), b"")

    def _place(self, first: int, last: int | None = None) -> str:
        return f"{self.folder}/{first:08d}{'' if last is None else f'-{last:08d}'}{self._suffix}"

    def _find(self) -> list[Segment]:
        found = []
        for meta in self._bucket.list(self.folder):
            if match := self._pattern.fullmatch(meta.name):
                found.append(Segment(meta.name, int(match[1]), int(match[2] or match[1]), meta.size))
        found.sort(key=lambda each: (each.first, -each.last))
        kept: list[Segment] = self._own()
        for each in found:
            if not kept or each.last > kept[-1].last:
                kept.append(each)
        return kept

    def _own(self) -> list[Segment]:
        try:
            return [Segment(self.name, -1, -1, self._bucket.head(self.name).size)]
        except FileNotFoundError:
            return []

    def _put(self, name: str, data: bytes, *, conditional: bool) -> int:
        """Puts a segment that isn't there yet; how much of the data it holds.

        That may be the beginning alone: an earlier try that got no answer had less to put, but arrived.
        """
        try:
            self._bucket.create(name, data)
        except Unconditional:
            if conditional:
                raise
            self._bucket.put(name, data)
        except Exists:
            there, _ = self._bucket.get(name)
            if there and data.startswith(there):
                return len(there)
            raise FolderUnwritable(
                f"another run writes to '{self._bucket.place}' as well ({name} is there already); what was finished is "
                "safe, run again to go on"
            ) from None
        return len(data)

    def _join(self, first: int, last: int) -> None:
        """Puts a group of segments once more as one object; without all of them, as a killed run may leave it, none."""
        assert self._known is not None
        whole = self._place(first, last)
        group = [each for each in self._known if first <= each.first and each.last <= last]
        if len(group) != GROUP or sum(each.size for each in group) > LARGE:
            return
        data = b"".join(reader.read() for reader in self._read(group))
        self._bucket.put(whole, data)
        self._known = [each for each in self._known if each not in group]
        self._known.append(Segment(whole, first, last, len(data)))

    def _read(self, segments: Iterable[Segment]) -> Iterator[BufferedReader]:
        """The segments' content, in order. Some are read ahead, since each is a request; large ones come in pieces."""
        left = iter(segments)
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="segments") as pool:
            waiting: deque[Future[BufferedReader]] = deque(
                pool.submit(self._open, each) for each in islice(left, AHEAD)
            )
            try:
                while waiting:
                    yield waiting.popleft().result()
                    waiting += (pool.submit(self._open, each) for each in islice(left, 1))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _open(self, segment: Segment) -> BufferedReader:
        if segment.size > LARGE:
            return BufferedReader(Chunks(self._bucket.chunks(segment.name)))
        return BufferedReader(BytesIO(self._bucket.get(segment.name)[0]))


class Chunks(RawIOBase):
    """Bytes that come in pieces, as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (chunk := next(self._chunks, None)) is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
