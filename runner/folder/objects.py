"""A run folder in an object store, reached by a URL.

Files are objects under the URL's path and have the same names as in a folder of this machine, but for those that grow:
`segments` says what they are made of. What is put is there whole or not at all, so nothing has to be swept or mended.
`lease` is the lock, `bucket` asks the store.

    store = ObjectStore(read_url("s3://bucket/alps"))
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, BytesIO

from runner.errors import FolderUnwritable
from runner.folder.bucket import Bucket
from runner.folder.clouds import PATIENT, Patience, Place
from runner.folder.lease import RENEWALS, SECONDS, Lease
from runner.folder.local import LONGEST_LINE
from runner.folder.names import CLOCK, LOCK, LOG, RECORDS
from runner.folder.segments import Growing

GROWING = (RECORDS, LOG)
ASKED_EACH = 100  # files; the sizes of more are read off a list
AT_ONCE = 16  # requests


class ObjectStore:
    """A place in an object store, held by one process at a time; a lock whose owner died runs out.

    Another process may put into it while this one holds it.
    """

    remote = True

    def __init__(
        self,
        place: Place,
        *,
        patience: Patience = PATIENT,
        lock_seconds: float = SECONDS,
        longest_line: int = LONGEST_LINE,
    ) -> None:
        self.place, self._patience, self._seconds = place, patience, lock_seconds
        self._longest_line = longest_line
        self._bucket = Bucket(place, patience)
        self._growing = {name: Growing(self._bucket, name) for name in GROWING}
        self._lease: Lease | None = None

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        return (self.place.prefix or self.place.bucket).rpartition("/")[2]

    def exists(self) -> bool:
        return next(self._bucket.list(), None) is not None

    def put(self, name: str, data: bytes) -> None:
        with self._writing(name):
            self._bucket.put(name, data)

    def open(self, name: str) -> BufferedReader:
        if name in self._growing:
            return BufferedReader(BytesIO(b"".join(self.lines(name))))
        return BufferedReader(BytesIO(self._bucket.get(name)[0]))

    def size(self, name: str) -> int:
        if name in self._growing:
            return self._growing[name].size()
        try:
            return self._bucket.head(name).size
        except FileNotFoundError:
            return -1

    def folders(self) -> Iterator[str]:
        return iter(sorted(self._bucket.folders()))

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        asked = dict.fromkeys(names, -1)
        if len(asked) <= ASKED_EACH:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sizes") as pool:
                return dict(zip(asked, pool.map(self.size, asked), strict=True))
        for folder in {name.rpartition("/")[0] for name in asked}:
            asked |= {meta.name: meta.size for meta in self._bucket.list(folder) if meta.name in asked}
        return asked

    def list(self) -> Iterator[str]:
        parts = {growing.folder: growing for growing in self._growing.values()}
        found = set()
        for meta in self._bucket.list():
            growing = parts.get(meta.name.partition("/")[0])
            found.add(growing.name if growing and growing.is_part(meta.name) else meta.name)
        return iter(sorted(found - {LOCK, CLOCK}))

    def remove(self, name: str) -> None:
        with self._writing(name):
            self._bucket.remove(name)

    def sweep(self) -> None:
        """Nothing is ever half-written."""

    def folds_names(self) -> bool:
        return False

    @contextlib.contextmanager
    def hold(self, *, lock: bool = True) -> Iterator[None]:
        lease = self._new_lease() if lock else None
        if lease:
            lease.take()
        self._lease = lease
        try:
            yield
        finally:
            try:
                self.flush()
            finally:
                self._lease = None
                for growing in self._growing.values():
                    growing.forget()
                if lease:
                    lease.release()

    def append(self, name: str, data: bytes) -> None:
        if name not in self._growing:
            raise FolderUnwritable(f"'{self}/{name}' can't grow: in a store these do: {', '.join(GROWING)}")
        self._growing[name].append(data)

    def flush(self) -> None:
        if self._lease:
            self._lease.check()
        for growing in self._growing.values():
            growing.flush(conditional=self._lease is not None)

    def lines(self, name: str) -> Iterator[bytes]:
        if name in self._growing:
            return self._growing[name].lines(self._longest_line)
        return iter(self.open(name))

    def cut(self, name: str, end: int, rest: str) -> int:
        return 0  # a segment stays as it is

    def _new_lease(self) -> Lease:
        # It has to know in time that it can't be renewed.
        seconds = self._seconds / RENEWALS
        answer, whole = min(self._patience.answer, seconds), min(self._patience.all, seconds)
        return Lease(Bucket(self.place, dataclasses.replace(self._patience, answer=answer, all=whole)), self._seconds)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            message = (
                f"'{name}' can't be the name of a file in '{self}': it leaves the folder, is too long, or has signs "
            )
            raise FolderUnwritable(message + "that can't be written") from None
