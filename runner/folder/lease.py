"""The lock of a run folder in an object store: an object that says who holds the folder, renewed as long as that lives.

It is made only if it is absent, and replaced only in the version that was seen, so that one of two wins. Whoever does
not renew it in time is taken for dead. Its age is told by the store's clock alone: that of an object written just now.

    lease = Lease(bucket, seconds=60)
    lease.take()        # or RunFolderHeld
    lease.check()       # before each write that matters
    lease.release()
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from runner.errors import FolderUnwritable, RunFolderHeld
from runner.folder.bucket import UNLOCKED, Bucket, Exists, Meta, Version
from runner.folder.names import CLOCK, LOCK

SECONDS = 60.0  # after which a lock that isn't renewed is another's
RENEWALS = 4  # in that time
TRIES = 5


class Lease:
    """The lock of one holder."""

    def __init__(self, bucket: Bucket, seconds: float = SECONDS) -> None:
        self._bucket, self._seconds = bucket, seconds
        self._owner, self._beat = uuid.uuid4().hex, 0
        self._version: Version = {}
        self._renewed = 0.0  # by this machine's clock that never jumps
        self._lost = False
        self._over = threading.Event()
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def take(self) -> None:
        """Takes the lock, and renews it from now on.

        Raises:
            RunFolderHeld: another process renewed it a short time ago.
            FolderUnwritable: this store can't refuse a put.
        """
        begun = time.monotonic()
        for _ in range(TRIES):
            try:
                self._version = self._bucket.create(LOCK, self._content())
                break
            except Exists:
                if self._take_over():
                    break
        else:
            raise self._held("another process takes it at this moment")
        self._renewed = begun
        self._check_store()
        self._thread.start()

    def check(self) -> None:
        """Raises `FolderUnwritable`: the lock is gone or another's, so that nothing may be written any more."""
        if not self._lost and self._unrenewed() > self._seconds / 2:
            try:
                self._renew()
            except FolderUnwritable:
                if self._unrenewed() > self._seconds:
                    raise
        if self._lost:
            raise FolderUnwritable(
                f"the lock of '{self._bucket.place}' was removed or taken over, so another run may write there as "
                "well; what was finished is safe, run again to go on"
            )

    def release(self) -> None:
        """Says that nobody holds the folder; a lock that is another's by now is left to it."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if not self._lost:
            try:
                self._bucket.replace(LOCK, self._content(held=False), self._version)
            except (Exists, FolderUnwritable):
                return  # it runs out

    def _content(self, *, held: bool = True) -> bytes:
        self._beat += 1
        return orjson.dumps(
            {
                "held": held,
                "owner": self._owner,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "seconds": self._seconds,
                "beat": self._beat,
            }
        )

    def _take_over(self) -> bool:
        """Replaces a lock that is free or has run out; whether that went well."""
        try:
            data, meta = self._bucket.get(LOCK)
        except FileNotFoundError:
            return False
        said = _read(data)
        if said.get("held") is not False:
            age = self._age(meta)
            left = _seconds(said, self._seconds) - age
            if left > 0:
                who = f"{said.get('host', 'an unknown machine')}, process {said.get('pid', 'unknown')}"
                raise self._held(f"{who}; it was renewed {age:.0f} s ago, and is free in {left:.0f} s if that is gone")
        try:
            self._version = self._bucket.replace(LOCK, self._content(), meta.version)
        except Exists:
            return False
        return True

    def _age(self, lock: Meta) -> float:
        """How old the lock is, in seconds, without a clock of this or another machine."""
        self._bucket.put(CLOCK, self._owner.encode())
        try:
            return float((self._bucket.head(CLOCK).modified - lock.modified).total_seconds())
        except FileNotFoundError:  # another process that looked at the clock has removed it
            return 0.0
        finally:
            self._bucket.remove(CLOCK)

    def _held(self, by: str) -> RunFolderHeld:
        return RunFolderHeld(
            f"the run folder '{self._bucket.place}' is held by {by}; wait for it, or choose another 'out='"
        )

    def _check_store(self) -> None:
        """Finds out whether the store refuses what it should, since some take every put."""
        try:
            self._bucket.create(LOCK, b"{}")
        except Exists:
            return
        self._bucket.remove(LOCK)
        raise FolderUnwritable(
            f"the store of '{self._bucket.place}' can't lock (it takes a put that it should refuse); {UNLOCKED}"
        )

    def _keep(self) -> None:
        period = self._seconds / RENEWALS
        while not self._over.wait(period) and not self._lost:
            # Where the store is down, whether the lock is still ours shows when it answers again.
            with contextlib.suppress(FolderUnwritable):
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            begun = time.monotonic()
            try:
                self._version = self._bucket.replace(LOCK, self._content(), self._version)
                self._renewed = begun
            except Exists:
                self._lost = not self._is_ours()

    def _is_ours(self) -> bool:
        """Whether what is there is an earlier renewal of ours that got no answer; the next one goes on from it."""
        try:
            data, meta = self._bucket.get(LOCK)
        except FileNotFoundError:
            return False
        self._version = meta.version
        return _read(data).get("owner") == self._owner

    def _unrenewed(self) -> float:
        return time.monotonic() - self._renewed


def _read(data: bytes) -> Mapping[str, Any]:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _seconds(said: Mapping[str, Any], usual: float) -> float:
    seconds = said.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else usual
