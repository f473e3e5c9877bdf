"""Writing files so that a reader meets the old content or the new, never half of one.

It turns what the system says about a full or closed disk into `FolderUnwritable`. It knows nothing of what is written.

    with writing_to(folder):
        atomic_write(folder / "gallery.html", page)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PosixPath
from typing import Any

import jsonlines
import orjson

from runner.errors import FolderUnwritable, SettingError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(s3|gs|az):/", re.IGNORECASE)
PART = ".part"  # ends the name of a file that isn't whole yet
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "writing is not permitted",
    errno.EPERM: "writing is not permitted",
    errno.ENOENT: "the folder has vanished",
    errno.ESTALE: "the folder has vanished",
    errno.ENODEV: "the disk has vanished",
    errno.ENOTCONN: "the disk has vanished",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EEXIST: "a file stands where a folder should be",
    errno.EISDIR: "a folder stands where a file should be",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the name is too long for this system",
    errno.ELOOP: "its symbolic links go in a circle",
}


@contextlib.contextmanager
def writing_to(folder: object) -> Iterator[None]:
    """Within it, a disk that is full, closed or gone is a `FolderUnwritable` that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EBADF):  # a fault of the program
            raise
        reason = REASONS.get(error.errno, error.strerror)
        place = f" ({error.filename})" if error.filename else ""
        message = f"can't write to '{folder}': {reason}{place}; what was finished is safe, run again to go on"
        raise FolderUnwritable(message) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: the system may take fewer at once than it was given, for instance on a nearly full disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, making its folders.

    The disk has the content before the name: after a power cut the old file is there or the new one, never half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, since two processes may build the same gallery; hidden, so that no file list shows it.
    temporary = path.with_name(f".{uuid.uuid4().hex}{PART}")
    try:
        _write_new(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written; only for whoever holds the folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(PART):
                Path(place, name).unlink(missing_ok=True)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable: flushing a file does not flush the folder's entry for it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what disks answer that can't flush a folder
            raise
    finally:
        os.close(descriptor)


class Address(PosixPath):
    """A URL in the place of a path, with both its slashes. No file can be opened by it; `folder.store` can."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)


def is_url(place: object) -> bool:
    """Whether a text is a URL and no path."""
    return URL.match(str(place)) is not None


def on_disk(place: str, whose: str) -> Path:
    """A path of this machine. Raises `SettingError`: it is a URL."""
    if is_url(place):
        raise SettingError(f"out={place}: {whose} writes to a folder of this machine, not to a URL")
    return Path(place)


def expanded(path: Path | str) -> Path:
    """A path with its `~` replaced by the home folder, where there is one; a URL is an `Address`."""
    if is_url(path):
        return Address(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name of nobody
        return Path(path)


def sha256_of(file: Path | str) -> str:
    """SHA-256 (hexadecimal) of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_lines(file: Path) -> list[Any]:
    """The values of a file of JSON lines, all of them at once: for files that are small and whole."""
    with jsonlines.open(file, loads=orjson.loads) as reader:
        return list(reader)


def write_lines(file: Path, values: Iterable[Any]) -> None:
    """Writes values as JSON lines, one after the other: for files that nobody needs after a crash."""
    with jsonlines.open(file, "w", dumps=lambda value: orjson.dumps(value).decode()) as writer:
        writer.write_all(values)
