"""A place in an object store, S3, GCS or Azure: requests that are repeated while the store is slow or down.

obstore asks; `clouds` says what its errors mean.

    bucket = Bucket(read_url("s3://bucket/path"))
    bucket.put("run.json", data)
    version = bucket.create("records/00000000.jsonl", data)
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from runner.errors import FolderUnwritable
from runner.folder.clouds import PATIENT, STATUS, UNSAFE, Patience, Place, client_at, reason_of

T = TypeVar("T")
LONGEST_KEY = 1024  # bytes, in every one of these stores
HASTY = 10.0  # seconds for an answer of a store that was down a moment ago
LARGEST = 1 << 29  # bytes of an object that is read at once; no file of ours has as many
UNLOCKED = "choose another 'out=', or set lock=false and see to it that only one run writes there"


class Unconditional(FolderUnwritable):
    """The store knows no puts that depend on what is there."""


class Exists(Exception):
    """A conditional put met another content than it was told."""


Version = Mapping[str, Any]  # of an object, as the store tells it


class Meta(NamedTuple):
    """What is known of an object without its content."""

    name: str
    size: int
    version: Version
    modified: Any  # a time of the store's clock


class Bucket:
    """The objects at a place, by names relative to it.

    What can't be done raises `FolderUnwritable`, an object that isn't there `FileNotFoundError`. Once the store has not
    answered, each request is tried once only, until one succeeds: who ends a run doesn't wait again for each picture.
    """

    def __init__(self, place: Place, patience: Patience = PATIENT) -> None:
        self.place, self._patience = place, patience
        self._patient = client_at(place, patience)
        self._hasty = client_at(place, replace(patience, answer=min(patience.answer, HASTY), tries=0))
        self._down = False

    def key(self, name: str) -> str:
        """The name, if it can be one. Raises `FileNotFoundError` where it leaves the folder or is too long."""
        size = len(f"{self.place.prefix}/{name}".encode("utf-8", "replace"))
        if {"", ".", ".."} & set(name.split("/")) or UNSAFE.search(name) or size > LONGEST_KEY:
            raise FileNotFoundError(errno.ENOENT, "is not within the run folder", name)
        return name

    def put(self, name: str, data: bytes) -> None:
        """Writes an object whole."""
        key = self.key(name)
        self._write(lambda client: self._obstore.put(client, key, data, use_multipart=False))

    def create(self, name: str, data: bytes) -> Version:
        """Writes an object that isn't there yet; its version. Raises `Exists`: there is one of another content."""
        return self._put_if(name, data, "create")

    def replace(self, name: str, data: bytes, version: Version) -> Version:
        """Writes an object over the version that is told; its version. Raises `Exists`: it is another one, or gone."""
        return self._put_if(name, data, dict(version))

    def get(self, name: str) -> tuple[bytes, Meta]:
        """An object's content. Raises `OSError`: it is too large to be read at once."""
        key = self.key(name)

        def read(client: Any) -> tuple[bytes, Meta]:
            found = self._obstore.get(client, key)
            if found.meta["size"] > LARGEST:
                raise OSError(errno.EFBIG, "is too large", name)
            return bytes(found.bytes()), _meta(found.meta)

        return self._ask(read)

    def chunks(self, name: str) -> Iterator[bytes]:
        """An object's content, a few megabytes at a time."""
        key = self.key(name)
        stream = self._ask(lambda client: iter(self._obstore.get(client, key).stream(min_chunk_size=1 << 22)))
        # obstore goes on where an answer was cut; a stream that failed must not be taken for one that ended.
        while (chunk := self._ask(lambda _: next(stream, None), repeats=0)) is not None:
            yield bytes(chunk)

    def head(self, name: str) -> Meta:
        """What is known of an object."""
        key = self.key(name)
        return _meta(self._ask(lambda client: self._obstore.head(client, key)))

    def remove(self, name: str) -> None:
        """Removes an object, if there is one."""
        key = self.key(name)
        try:
            self._ask(lambda client: self._obstore.delete(client, key))
        except FileNotFoundError:
            return

    def list(self, folder: str = "") -> Iterator[Meta]:
        """The objects in a folder, or all; a request for each thousand of them. None where there is no bucket."""
        stream: Any = None
        last: str | None = None

        def page(client: Any) -> Any:
            nonlocal stream
            if stream is None:
                stream = iter(self._obstore.list(client, folder or None, offset=last, chunk_size=1000))
            try:
                return next(stream, [])
            except BaseException:
                stream = None  # the next try goes on behind the last page
                raise

        with contextlib.suppress(FileNotFoundError):
            while found := self._ask(page):
                yield from map(_meta, found)
                last = found[-1]["path"]

    def folders(self) -> Iterator[str]:
        """The folders directly in this place."""
        try:
            found = self._ask(lambda client: self._obstore.list_with_delimiter(client))
        except FileNotFoundError:
            return iter(())
        return (str(path).rpartition("/")[2] for path in found["common_prefixes"])

    def _put_if(self, name: str, data: bytes, mode: Any) -> Version:
        key = self.key(name)
        exceptions = self._exceptions

        def write(client: Any) -> Version:
            for pause in (*self._pauses(3), None):
                try:
                    return _version(self._obstore.put(client, key, data, mode=mode))
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                    # Perhaps an answer got lost, and this is our own content; or another writes at this moment (409).
                    found = self._found(name)
                    if found is not None and found[0] == data:
                        return found[1].version
                    if found is not None or pause is None or mode != "create":
                        raise Exists(name) from None
                    time.sleep(pause)
            raise AssertionError

        return self._write(write)

    def _found(self, name: str) -> tuple[bytes, Meta] | None:
        try:
            return self.get(name)
        except FileNotFoundError:
            return None

    def _write(self, request: Callable[[Any], T]) -> T:
        try:
            return self._ask(request)
        except FileNotFoundError:
            raise self._unusable(STATUS[404]) from None

    def _pauses(self, number: int) -> Iterator[float]:
        return (self._patience.first_pause * 2**each for each in range(number))

    def _ask(self, request: Callable[[Any], T], repeats: int = 3) -> T:
        """The answer to a request, which is repeated where obstore doesn't do that itself."""
        for pause in (*self._pauses(repeats), None):
            try:
                answer = request(self._hasty if self._down else self._patient)
            except (FileNotFoundError, ValueError):  # ValueError: a name that an object can't have
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
            except (self._exceptions.BaseError, NotImplementedError) as error:
                text = str(error)
                if "NoSuchBucket" in text:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
                if pause is None or self._down or not _passes(text):
                    self._down = "status code: 4" not in text
                    if "NotImplemented" in text:
                        raise self._unusable(f"it knows no conditional puts; {UNLOCKED}", Unconditional) from None
                    raise self._unusable(reason_of(text)) from None
                time.sleep(pause)
            else:
                self._down = False
                return answer
        raise AssertionError

    def _unusable(self, reason: str, kind: type[FolderUnwritable] = FolderUnwritable) -> FolderUnwritable:
        return kind(f"'{self.place}' can't be used: {reason}; what was finished is safe, run again to go on")

    @property
    def _obstore(self) -> Any:
        import obstore

        return obstore

    @property
    def _exceptions(self) -> Any:
        import obstore.exceptions

        return obstore.exceptions


def _meta(found: Mapping[str, Any]) -> Meta:
    return Meta(found["path"], found["size"], _version(found), found["last_modified"])


def _version(found: Mapping[str, Any]) -> Version:
    return {key: found[key] for key in ("e_tag", "version") if found[key] is not None}


def _passes(text: str) -> bool:
    """Whether an error may be gone the next time, and obstore has not tried again.

    It doesn't repeat a conditional put without an answer, which may have arrived; `_put_if` knows its content again.
    """
    cut = "HTTP error" in text and "Builder" not in text
    return "status code: 409" in text or (cut and ", after " not in text)
