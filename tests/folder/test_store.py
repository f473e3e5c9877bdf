"""What every store promises, held by the folder of this machine, an object store, and the fake one of the tests."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest
from fake_store import FakeStore

from runner.errors import FolderUnwritable, RunFolderHeld
from runner.folder.clouds import read_url
from runner.folder.ledger import Ledger
from runner.folder.local import LocalStore
from runner.folder.objects import ObjectStore
from runner.folder.store import store_at


@pytest.fixture(params=["local", "fake", "objects"])
def store(request, tmp_path):
    if request.param == "objects":
        return ObjectStore(read_url(f"s3://{request.getfixturevalue('bucket')}/new/a run#1 %20 猫/"))
    return LocalStore(tmp_path / "new" / "run") if request.param == "local" else FakeStore()


def content(store, name):
    with store.open(name) as file:
        return file.read()


def test_files_are_put_read_listed_and_removed(store):
    assert not store.exists() and store.size("a") == -1
    with store.hold():
        assert store.exists()
        store.put("images/a dog/x.png", b"abc")
        store.put("images/a dog/x.png", b"abcd")
        store.put("run.json", b"{}")
        assert content(store, "images/a dog/x.png") == b"abcd"
        assert (store.size("images/a dog/x.png"), store.size("run.json"), store.size("images/b")) == (4, 2, -1)
        assert store.sizes(["run.json", "nothing", "images/a dog/x.png"]) == {
            "run.json": 2,
            "nothing": -1,
            "images/a dog/x.png": 4,
        }
        store.remove("run.json")
        store.remove("run.json")
        assert list(store.folders()) == ["images"]
    assert [name for name in store.list() if name != ".lock"] == ["images/a dog/x.png"]
    with pytest.raises(FileNotFoundError):
        store.open("run.json")


def test_lines_are_appended_and_read_with_their_ends(store):
    assert store.size("records.jsonl") == -1
    with store.hold():
        store.append("records.jsonl", b"")
        assert store.size("records.jsonl") == 0
        for line in (b"one\n", b"two\n", b"thr"):
            store.append("records.jsonl", line)
        assert list(store.lines("records.jsonl")) == [b"one\n", b"two\n", b"thr"]
        store.flush()
        store.append("records.jsonl", b"ee\n") if not store.remote else None
        assert store.size("records.jsonl") == sum(map(len, store.lines("records.jsonl")))
    assert list(store.lines("records.jsonl"))[:2] == [b"one\n", b"two\n"]
    assert content(store, "records.jsonl") == b"".join(store.lines("records.jsonl"))
    assert [name for name in store.list() if name != ".lock"] == ["records.jsonl"]
    with pytest.raises(OSError):
        list(store.lines("nothing"))


def test_a_torn_end_is_cut_where_a_file_can_be(store):
    with store.hold():
        store.append("records.jsonl", b"one\ntwo\nthr")
        if store.remote:
            assert store.cut("records.jsonl", 8, "records.torn") == 0
            assert store.size("records.jsonl") == 11
            return
        assert store.cut("records.jsonl", 8, "records.torn") == 3
        store.append("records.jsonl", b"four\n")
        assert list(store.lines("records.jsonl")) == [b"one\n", b"two\n", b"four\n"]
    assert content(store, "records.torn") == b"thr\n"


def test_one_holds_it_at_a_time(store):
    with store.hold(), pytest.raises(RunFolderHeld), store.hold():
        pass
    with pytest.raises(RuntimeError, match="within"), store.hold():
        raise RuntimeError("within")
    with store.hold():
        store.put("a", b"")


@pytest.mark.parametrize("name", ["../outside", "images/../../outside", "/etc/passwd", "nul\0nul", "x" * 5000])
def test_a_name_that_leaves_the_folder_is_not_there(store, name):
    with store.hold():
        assert store.size(name) == -1
        with pytest.raises(OSError):
            store.open(name)


def test_nothing_is_written_outside(tmp_path):
    store = LocalStore(tmp_path / "run")
    with store.hold(), pytest.raises(FolderUnwritable):
        store.put("../outside", b"x")
    assert not (tmp_path / "outside").exists()


def test_what_is_no_file_is_never_opened(tmp_path):
    store = store_at(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert store.size("pipe") == store.size("folder") == -1
    opened = []

    def attempt():
        for name in ("pipe", "folder"):
            try:
                store.open(name)
            except OSError as error:
                opened.append(error.errno)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert opened == [errno.EINVAL, errno.EINVAL]
    with store.hold(), pytest.raises(FolderUnwritable, match="is not a file"):
        store.append("pipe", b"x")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_is_said_and_can_be_used_without(tmp_path, system, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    system(fcntl, flock=refuse)
    store = LocalStore(tmp_path)
    with pytest.raises(FolderUnwritable, match=r"can't lock files.*lock=false"), store.hold():
        pass
    with store.hold(lock=False):
        store.append("records.jsonl", b"x\n")
        store.flush()


@pytest.mark.parametrize("harm", [lambda lock: lock.unlink(), lambda lock: (lock.unlink(), lock.touch())])
def test_a_lock_that_was_removed_is_noticed(tmp_path, harm):
    store = LocalStore(tmp_path)
    with pytest.raises(FolderUnwritable, match=r"the lock of .* was removed"), store.hold():
        store.append("records.jsonl", b"x\n")
        harm(tmp_path / ".lock")
        store.flush()
    (tmp_path / ".lock").touch()
    with store.hold():
        assert list(store.lines("records.jsonl")) == [b"x\n"]


def test_a_file_that_was_cut_meanwhile_is_noticed(tmp_path):
    store = LocalStore(tmp_path)
    with store.hold(), pytest.raises(FolderUnwritable, match="was cut by another program"):
        store.append("records.jsonl", b"one\n")
        os.truncate(tmp_path / "records.jsonl", 0)
        store.append("records.jsonl", b"two\n")


class Folding(LocalStore):
    """A disk on which small and large letters are the same."""

    def _path(self, name):
        return super()._path(name.lower())


def test_two_items_never_share_a_file_where_letters_are_the_same(tmp_path):
    store = Folding(tmp_path)
    with Ledger(store) as ledger:
        store.put("images/A_Cat/x.png", b"abc")
        ledger.append({"id": "a", "status": "done", "image": "images/A_Cat/x.png", "bytes": 3})
        assert ledger.owner("images/a_cat/x.png") == "a" and ledger.is_done("a")
        ledger.append({"id": "b", "status": "done", "image": "images/a_cat/x.png", "bytes": 3})
        assert ledger.is_done("b") and not ledger.is_done("a")
    with Ledger(LocalStore(tmp_path / "other")) as ledger:
        ledger.append({"id": "a", "status": "done", "image": "images/A_Cat/x.png", "bytes": 3})
        assert ledger.owner("images/a_cat/x.png") is None
