"""A run folder in memory, which keeps the promises of a store and breaks where a test asks for it."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator

from runner.errors import FolderUnwritable, RunFolderHeld


def failing_from(number: int) -> Callable[[str, str], None]:
    """For `FakeStore.before`: the disk is full from the writing call of this number on, counted from 0."""
    calls = itertools.count()

    def before(method: str, name: str) -> None:
        if next(calls) >= number:
            raise FolderUnwritable("the disk is full")

    return before


class FakeStore:
    """Files by their names. `before` is called with each writing call's method and name, and may raise."""

    name, remote = "fake", False

    def __init__(self, before: Callable[[str, str], None] = lambda method, name: None) -> None:
        self.files: dict[str, bytes] = {}
        self.before = before
        self._held = False
        self.made = False

    def __str__(self) -> str:
        return "memory/fake"

    def exists(self) -> bool:
        return self.made

    def put(self, name: str, data: bytes) -> None:
        self.before("put", name)
        self.files[name] = data

    def open(self, name: str) -> io.BufferedReader:
        if name not in self.files:
            raise FileNotFoundError(name)
        return io.BufferedReader(io.BytesIO(self.files[name]))

    def size(self, name: str) -> int:
        return len(self.files[name]) if name in self.files else -1

    def folders(self) -> Iterator[str]:
        return iter(sorted({name.partition("/")[0] for name in self.files if "/" in name}))

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: self.size(name) for name in names}

    def list(self) -> Iterator[str]:
        return iter(sorted(self.files))

    def remove(self, name: str) -> None:
        self.before("remove", name)
        self.files.pop(name, None)

    def sweep(self) -> None:
        self.before("sweep", "")

    def folds_names(self) -> bool:
        return False

    @contextlib.contextmanager
    def hold(self, *, lock: bool = True) -> Iterator[None]:
        if self._held and lock:
            raise RunFolderHeld(f"'{self}' is held")
        self._held = self.made = True
        try:
            yield
        finally:
            self._held = False

    def append(self, name: str, data: bytes) -> None:
        self.before("append", name)
        self.files[name] = self.files.get(name, b"") + data

    def flush(self) -> None:
        self.before("flush", "")

    def lines(self, name: str) -> Iterator[bytes]:
        with self.open(name) as file:
            yield from file

    def cut(self, name: str, end: int, rest: str) -> int:
        self.before("cut", name)
        whole = self.files[name]
        self.files[name], self.files[rest] = whole[:end], self.files.get(rest, b"") + whole[end:] + b"\n"
        return len(whole) - end
