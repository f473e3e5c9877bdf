"""Where the files of a run folder lie: everything that is read or written in a run folder goes through a store.

A store puts files whole and appends lines, for one process at a time. What is in the files it doesn't know. Here is
what every store can do; `local` is a folder of this machine, `objects` one in an object store.

    store = store_at("outputs/alps")
    with store.hold():
        store.put("images/a_dog/seed_1_00000.png", data)
        store.append("records.jsonl", line)
        store.flush()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from runner.files import expanded, is_url
from runner.folder.clouds import read_url
from runner.folder.local import LocalStore
from runner.folder.objects import ObjectStore


class Store(Protocol):
    """The files of one run folder. A name is a file's path within it, with "/"; `str(store)` is what messages show.

    What writes raises `FolderUnwritable` where it can't. A name that leaves the folder is one that isn't there.
    """

    @property
    def remote(self) -> bool:
        """Whether each look at a file is a request, so that a file that is recorded is believed to be there."""

    @property
    def name(self) -> str:
        """What a report is headed with."""

    def exists(self) -> bool:
        """Whether there is a run folder, perhaps an empty one."""

    def put(self, name: str, data: bytes) -> None:
        """Writes a file whole: a reader meets the old content or the new, after a power cut as well."""

    def open(self, name: str) -> BufferedReader:
        """A file's content. Raises `OSError`: there is no such file, or it can't be read."""

    def size(self, name: str) -> int:
        """A file's size in bytes; -1 where there is none."""

    def folders(self) -> Iterator[str]:
        """The names of the folders that lie directly in it, sorted; none where it isn't there."""

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        """The sizes of many files, as `size` tells them, with as few requests as that takes."""

    def list(self) -> Iterator[str]:
        """The names of all files, sorted."""

    def remove(self, name: str) -> None:
        """Removes a file, if there is one."""

    def sweep(self) -> None:
        """Removes what a killed process left half-written; only for whoever holds the folder."""

    def folds_names(self) -> bool:
        """Whether names that differ in small and large letters alone are one file, as on many disks."""

    def hold(self, *, lock: bool = True) -> AbstractContextManager[None]:
        """Keeps other processes from writing, and makes the folder. Raises `RunFolderHeld`: another one has it.

        Without `lock` whoever asks sees to it that no other process writes.
        """

    def append(self, name: str, data: bytes) -> None:
        """Adds to the end of a file, for whoever holds the folder. A crash may leave the data's beginning."""

    def flush(self) -> None:
        """Waits until the disk has all that was appended."""

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file with their ends. Raises `OSError` as `open` does."""

    def cut(self, name: str, end: int, rest: str) -> int:
        """Moves what lies beyond `end` bytes of a file to the end of the file `rest`; how many bytes were moved.

        A file that can't be cut stays as it is.
        """


def store_at(place: Path | str) -> Store:
    """The store of the run folder at a place, a path or a URL, which needn't exist.

    Raises:
        SettingError: the URL is of no store that is known, or what it needs isn't installed.
    """
    return ObjectStore(read_url(str(place))) if is_url(place) else LocalStore(expanded(place))
