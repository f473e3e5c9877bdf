"""A few threads that encode, hash and write pictures and their thumbnails while the next ones are made."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

from PIL import Image

from runner.errors import FolderUnwritable
from runner.folder.names import thumbnail_name
from runner.folder.store import Store, store_at
from runner.images.codec import Pixels, encode, pixels_hash, thumbnail
from runner.item import Item
from runner.record import Encoded, Written

log = logging.getLogger(__name__)


def finished(pixels: Pixels, item: Item, encode: Callable[[Pixels, Item], bytes] = encode) -> Encoded:
    """A picture's file and its thumbnail, from uint8 [H, W, 3]."""
    data = encode(pixels, item)
    sha256 = hashlib.sha256(data).hexdigest()
    return Encoded(data=data, sha256=sha256, pixels_sha256=pixels_hash(pixels), thumbnail=_thumbnail(pixels))


@dataclass(frozen=True, slots=True)
class Finish:
    """Makes a picture's file in the process that rendered it, and puts it into the run folder where that has one.

    `place` is the run folder's, None where the file goes to whoever writes it.
    """

    place: str | None = None

    def __call__(self, pixels: Pixels, item: Item, path: str) -> Encoded | Written:
        made = finished(pixels, item)
        if self.place is None:
            return made
        return _put(_store(self.place), path, made)


_store = functools.cache(store_at)  # a store has connections that the next picture uses again


class Writer:
    """A few threads that encode, hash and write pictures while the next ones are made.

    `encode` makes the bytes of a picture's file.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: int = 3,
        waiting: int = 16,
        encode: Callable[[Pixels, Item], bytes] = encode,
    ) -> None:
        self._store, self._encode = store, encode
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        # Bounds the pictures in memory: who makes them faster than they are written has to wait.
        self._places = threading.BoundedSemaphore(threads + waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, picture: Pixels | Encoded, item: Item, path: PurePosixPath) -> Future[Written]:
        """Lets a picture be written to `path` in the run folder; its pixels must stay as they are until then.

        Waits while too many pictures are waiting.
        """
        self._places.acquire()
        try:
            future = self._pool.submit(self._write, picture, item, path)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return future

    def _write(self, picture: Pixels | Encoded, item: Item, path: PurePosixPath) -> Written:
        made = picture if isinstance(picture, Encoded) else finished(picture, item, self._encode)
        return _put(self._store, str(path), made)


def _put(store: Store, path: str, made: Encoded) -> Written:
    """Puts a picture into its place, and its thumbnail. A picture without one is whole: nothing fails for it."""
    store.put(path, made.data)
    if made.thumbnail:
        try:
            store.put(thumbnail_name(path), made.thumbnail)
        except FolderUnwritable as error:
            log.debug("no thumbnail of %s: %s", path, error)
    return made.written(path)


def _thumbnail(pixels: Pixels) -> bytes | None:
    try:
        return thumbnail(Image.fromarray(pixels))
    except Exception as error:
        log.debug("no thumbnail: %r", error)
        return None
