"""A run folder on a disk of this machine, held by one process at a time.

store = LocalStore(Path("outputs/alps"))
with store.hold():
    store.put("images/a_dog/seed_1_00000.png", data)
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BufferedReader
from pathlib import Path

from filelock import FileLock, Timeout

from runner.errors import FolderUnwritable, RunFolderHeld
from runner.files import atomic_write, flush_folder, sweep, write_all, writing_to
from runner.folder.names import LOCK, RECORDS

LONGEST_LINE = 1 << 24  # bytes; what is longer comes in pieces
LOCKLESS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})  # a disk that knows no locks


class LocalStore:
    """A folder of this machine, held by one process at a time; the lock vanishes with the process."""

    remote = False

    def __init__(self, folder: Path, *, longest_line: int = LONGEST_LINE) -> None:
        self.folder = folder
        self._longest_line = longest_line
        self._prefix = f"{folder}/"  # a Path takes longer than the system's answer
        self._appended: dict[str, tuple[int, int]] = {}  # descriptors of files that grow, and the bytes that they have
        self._locked: os.stat_result | None = None  # the lock's file, while it is held

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def exists(self) -> bool:
        try:
            return self.folder.exists()
        except (OSError, ValueError):  # a name that this system can't have
            return False

    def put(self, name: str, data: bytes) -> None:
        with writing_to(self.folder):
            self.folder.stat()  # one that has vanished must not come back as a folder of pictures without records
            atomic_write(Path(self._path(name)), data)

    def open(self, name: str) -> BufferedReader:
        # Opening a pipe would never return.
        descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a file", self._path(name))
        return os.fdopen(descriptor, "rb")

    def size(self, name: str) -> int:
        try:
            found = os.stat(self._path(name))
        except (OSError, ValueError):  # ValueError: a name with a NUL
            return -1
        return found.st_size if stat.S_ISREG(found.st_mode) else -1

    def folders(self) -> Iterator[str]:
        found = self.folder.iterdir() if self.exists() else ()
        return iter(sorted(path.name for path in found if path.is_dir()))

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        return {name: self.size(name) for name in names}

    def list(self) -> Iterator[str]:
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return (path.relative_to(self.folder).as_posix() for path in files)

    def remove(self, name: str) -> None:
        with writing_to(self.folder):
            Path(self._path(name)).unlink(missing_ok=True)

    def sweep(self) -> None:
        with writing_to(self.folder):
            sweep(self.folder)

    def folds_names(self) -> bool:
        return self.size(RECORDS) >= 0 and self.size(RECORDS.upper()) >= 0

    @contextlib.contextmanager
    def hold(self, *, lock: bool = True) -> Iterator[None]:
        if "\0" in str(self.folder):
            raise FolderUnwritable(f"'{self.folder}' is no name that a folder can have; choose another 'out='")
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = self._take_lock() if lock else None
            self._locked = os.stat(self._path(LOCK)) if lock else None
        try:
            yield
        finally:
            try:
                with writing_to(self.folder):
                    self._sync()
            finally:
                while self._appended:
                    os.close(self._appended.popitem()[1][0])
                self._locked = None
                if taken:
                    taken.release()

    def append(self, name: str, data: bytes) -> None:
        with writing_to(self.folder):
            if name not in self._appended:
                self._appended[name] = self._open_to_append(name), 0
            descriptor, least = self._appended[name]
            start = self._end(name, descriptor)
            if start < least:
                raise FolderUnwritable(f"'{self._path(name)}' was cut by another program; run again to go on")
            try:
                write_all(descriptor, data)
                self._appended[name] = descriptor, start + len(data)
            except BaseException:
                # A disk that became full may have taken the beginning of the line.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, start)
                raise

    def flush(self) -> None:
        with writing_to(self.folder):
            self._sync()
            for name, (descriptor, _) in self._appended.items():
                self._end(name, descriptor)
            self._check_lock()

    def _sync(self) -> None:
        for descriptor, _ in self._appended.values():
            os.fsync(descriptor)

    def lines(self, name: str) -> Iterator[bytes]:
        with self.open(name) as file:
            yield from iter(partial(file.readline, self._longest_line), b"")

    def cut(self, name: str, end: int, rest: str) -> int:
        with writing_to(self.folder), open(self._path(name), "r+b") as file, open(self._path(rest), "ab") as torn:
            size = file.seek(0, os.SEEK_END) - end
            file.seek(end)
            shutil.copyfileobj(file, torn)  # a crash may leave gigabytes of zeros
            torn.write(b"\n")
            torn.flush()
            os.fsync(torn.fileno())
            file.truncate(end)
        if name in self._appended:
            self._appended[name] = self._appended[name][0], end
        return size

    def _path(self, name: str) -> str:
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise FileNotFoundError(errno.ENOENT, "is not within the run folder", name)
        return self._prefix + name

    def _open_to_append(self, name: str) -> int:
        path = self._path(name)
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would never return
            raise FolderUnwritable(f"'{path}' is not a file; choose another 'out='")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        flush_folder(self.folder)
        return descriptor

    def _end(self, name: str, descriptor: int) -> int:
        """The file's size. A file that was removed or moved away takes writes all the same, but they are lost."""
        ours, path = os.fstat(descriptor), self._path(name)
        if not os.path.samestat(ours, os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return ours.st_size

    def _check_lock(self) -> None:
        if self._locked is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self._locked, os.stat(self._path(LOCK))):
                return
        raise FolderUnwritable(
            f"the lock of '{self.folder}' was removed, so another run may write there as well; what was finished is "
            "safe, run again to go on"
        )

    def _take_lock(self) -> FileLock:
        # Not bound to a thread: a server may leave the folder in another thread than it entered it.
        lock = FileLock(self.folder / LOCK, blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            message = (
                f"the run folder '{self.folder}' is held by another process; wait for it, or choose another 'out='"
            )
            raise RunFolderHeld(message) from None
        except OSError as error:
            if error.errno in LOCKLESS:
                message = (
                    f"the disk of '{self.folder}' can't lock files ({error.strerror}); choose another 'out=', or set "
                    "lock=false and see to it that only one run writes there"
                )
                raise FolderUnwritable(message) from None
            raise
        return lock
