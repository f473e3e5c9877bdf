"""A few threads that encode, hash and write pictures while the next ones are made."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

from runner.folder.store import Store
from runner.images.codec import Pixels, encode, pixels_hash
from runner.item import Item
from runner.record import Written


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

    def submit(self, pixels: Pixels, item: Item, path: PurePosixPath) -> Future[Written]:
        """Lets a picture be written to `path` in the run folder; its pixels must stay as they are until then.

        Waits while too many pictures are waiting.
        """
        self._places.acquire()
        try:
            future = self._pool.submit(self._write, pixels, item, path)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return future

    def _write(self, pixels: Pixels, item: Item, path: PurePosixPath) -> Written:
        data = self._encode(pixels, item)
        self._store.put(str(path), data)
        sha256 = hashlib.sha256(data).hexdigest()
        return Written(path=str(path), sha256=sha256, pixels_sha256=pixels_hash(pixels), bytes=len(data))
