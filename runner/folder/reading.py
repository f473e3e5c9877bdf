"""Pictures of a run folder as their records say that they are, and work on several of them at once.

A picture is read whole, and only the one that was recorded: its size and its SHA-256 are compared. Nothing is decoded.

    for record, data in in_order(lambda record: (record, read_picture(store, record)), records):
        ...
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, TypeVar

from runner.folder.names import IMAGES
from runner.folder.store import Store
from runner.ids import is_id

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 1 << 30  # bytes of a picture; what says that it is larger was altered
THREADS, AHEAD = 4, 8  # what is behind a network, or is flushed to a disk, is waited for most of the time
T = TypeVar("T")
U = TypeVar("U")


class Unreadable(Exception):
    """A file is not there, or not as it was recorded; the message says which one and why."""


def read_picture(store: Store, record: Mapping[str, Any]) -> bytes:
    """The bytes of a finished record's picture.

    Raises:
        Unreadable: it has vanished, or isn't the one that was recorded.
    """
    check_names(store, record)
    return read_recorded(store, record["image"], record["bytes"], record.get("sha256"))


def check_names(store: Store, record: Mapping[str, Any]) -> None:
    """Whether a record has an id, and a picture where run folders have theirs: what others wrote may name any file.

    Raises:
        Unreadable: it hasn't.
    """
    path = PurePosixPath(record["image"])
    if path.parts[:1] != (IMAGES,) or ".." in path.parts or path.suffix not in SUFFIXES:
        raise Unreadable(f"{store}/{path} is no picture of a run folder")
    if not is_id(record["id"]):
        raise Unreadable(f"{store}/{path} has the id '{record['id']}', which is none")


def read_recorded(store: Store, name: str, size: int, sha256: object) -> bytes:
    """A file of which size and SHA-256 are known; the latter is None in the oldest records.

    Raises:
        Unreadable: it has vanished, or is another one.
    """
    try:
        with store.open(name) as file:
            data = file.read(size + 1 if 0 <= size < LARGEST else 0)
    except FileNotFoundError:
        raise Unreadable(f"{store}/{name} is missing") from None
    except OSError as error:
        raise Unreadable(f"{store}/{name} can't be read: {error.strerror or error}") from None
    if len(data) != size or (sha256 is not None and hashlib.sha256(data).hexdigest() != sha256):
        raise Unreadable(f"{store}/{name} has changed since it was recorded")
    return data


def in_order(work: Callable[[T], U], these: Iterable[T]) -> Iterator[U]:
    """What `work` returns for each, in their order: a few are under way at once, and a few wait to be taken."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="folder") as pool:
        waiting: deque[Future[U]] = deque()
        for each in these:
            waiting.append(pool.submit(work, each))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
