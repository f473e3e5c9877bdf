"""Files are there whole or not at all, and a disk that can't take them is a user's error, not a fault."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import FolderUnwritable
from runner.files import atomic_write, flush_folder, sweep, write_all, writing_to


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_made_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert names(tmp_path / "a" / "b") == ["file"]


def test_a_file_has_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path, system: Callable[..., None], broken: str) -> None:
    atomic_write(tmp_path / "file", b"old")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    system(os, **{broken: fail})
    with pytest.raises(FolderUnwritable, match="disk is full"), writing_to(tmp_path):
        atomic_write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupt_leaves_no_litter(tmp_path: Path, system) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    system(os, replace=interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_what_the_system_did_not_take_at_once_is_written_after(tmp_path: Path, system) -> None:
    whole = os.write
    system(os, write=lambda descriptor, data: whole(descriptor, bytes(data)[:3]))
    atomic_write(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_writing_nothing_calls_nothing(system) -> None:
    calls: list[object] = []
    system(os, write=lambda *given: calls.append(given))
    write_all(-1, b"")
    assert calls == []


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOENT", "EIO", "ESTALE"])
def test_a_disk_that_cannot_be_written_is_the_users_error(number: str) -> None:
    code = getattr(errno, number)
    with pytest.raises(FolderUnwritable, match="outputs/alps") as caught, writing_to(Path("outputs/alps")):
        raise OSError(code, os.strerror(code), "the/file")
    assert caught.value.exit_code == 12
    assert "the/file" in str(caught.value)


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), OSError("no number"), ValueError("x")])
def test_any_other_error_is_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing_to(Path()):
        raise error
    assert caught.value is error


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(FolderUnwritable, match="a file stands where a folder should be"), writing_to(tmp_path):
        atomic_write(tmp_path / "images" / "a" / "file", b"")


def test_a_disk_that_cannot_flush_folders_is_used_all_the_same(tmp_path: Path, system) -> None:
    tried: list[int] = []

    def refuse(descriptor: int) -> None:
        tried.append(descriptor)
        raise OSError(errno.EINVAL, "Invalid argument")

    system(os, fsync=refuse)
    flush_folder(tmp_path)
    assert len(tried) == 1


def test_a_file_has_its_content_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: calls.append(name) or real(*given))
    atomic_write(tmp_path / "file", b"content")
    assert calls == ["write", "fsync", "replace"]


def test_only_half_written_files_are_swept(tmp_path: Path) -> None:
    for name in (".a.part", "b.part", ".c", "d/.e.part", "d/f"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [".c", "b.part", "d", "d/f"]
