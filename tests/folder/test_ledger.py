"""The ledger loses nothing that was finished, whatever happened to the process or to the disk."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import finished_ids

import runner
from runner.errors import FolderUnwritable, NoRunFolder, RunFolderHeld
from runner.folder.ledger import Ledger, iterate_records, numbered_records, read_index
from runner.folder.names import RECORDS, TORN
from runner.folder.store import LocalStore

HOLD = """
import sys, time
from pathlib import Path
from runner.folder.ledger import Ledger
from runner.folder.store import LocalStore
with Ledger(LocalStore(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def done(identity: str, path: str = "", size: int = 3) -> dict[str, Any]:
    return {"id": identity, "status": "done", "image": path or f"images/{identity}.png", "bytes": size, "prompt": "é🙂"}


def failed(identity: str) -> dict[str, Any]:
    return {"id": identity, "status": "failed", "error": {"class": "BlackPicture", "message": "black"}}


def put_image(folder: Path, path: str, data: bytes = b"abc") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)


def written(folder: Path, *records: dict[str, Any]) -> bytes:
    data = b"".join(orjson.dumps(record) + b"\n" for record in records)
    (folder / "records.jsonl").write_bytes(data)
    return data


def test_a_record_is_one_line_and_is_read_again(tmp_path: Path) -> None:
    with Ledger(LocalStore(tmp_path / "new" / "run")) as ledger:
        ledger.append(done("a"))
        ledger.append(failed("b"))
    data = (tmp_path / "new" / "run" / "records.jsonl").read_bytes()
    assert [orjson.loads(line) for line in data.splitlines()] == [done("a"), failed("b")]
    assert list(iterate_records(LocalStore(tmp_path / "new" / "run"))) == [done("a"), failed("b")]


def test_finished_is_what_the_newest_record_says_and_the_file_confirms(tmp_path: Path) -> None:
    records = [done("good"), done("gone"), done("short", size=4), failed("bad"), done("worse"), failed("worse")]
    written(tmp_path, *records, failed("better"), done("better"))
    for name in ("good", "short", "bad", "worse", "better"):
        put_image(tmp_path, f"images/{name}.png")
    with Ledger(LocalStore(tmp_path)) as ledger:
        assert finished_ids(ledger) == {"good", "better"}
        assert ledger.is_done("good")
        assert not any(ledger.is_done(name) for name in ("gone", "short", "bad", "worse", "unknown"))


def test_deep_counts_only_the_bytes_that_were_recorded(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"abc").hexdigest()
    written(tmp_path, done("good") | {"sha256": sha256}, done("bad") | {"sha256": sha256}, done("unsaid"))
    for name, data in (("good", b"abc"), ("bad", b"abd"), ("unsaid", b"abc")):
        put_image(tmp_path, f"images/{name}.png", data)
    with Ledger(LocalStore(tmp_path)) as ledger:
        assert finished_ids(ledger) == {"good", "bad", "unsaid"}
    with Ledger(LocalStore(tmp_path), deep=True) as ledger:
        assert finished_ids(ledger) == {"good"}


def test_failures_are_counted_since_the_last_success(tmp_path: Path) -> None:
    written(tmp_path, failed("a"), failed("a"), failed("b"), done("b"), failed("b"))
    with Ledger(LocalStore(tmp_path)) as ledger:
        assert [ledger.failures(name) for name in "abc"] == [2, 1, 0]
        ledger.append(failed("a"))
        assert ledger.failures("a") == 3


def test_the_ways_of_all_pictures_are_known(tmp_path: Path) -> None:
    run = {"device": "cuda:0", "device_name": "a card", "threads": 2, "dtypes": {}, "prediction": "v", "unet_bs": 4}
    model = {"fingerprints": {"vae": "f"}}
    made = {"model": model, "item": {"width": 64, "height": 128}, "run": run, "env": {"torch": "2"}}
    written(tmp_path, done("a") | made, done("b") | made, done("c"), done("d") | {"item": 1, "run": [], "env": None})
    with Ledger(LocalStore(tmp_path)) as ledger:
        [way] = ledger.ways
        ledger.append(done("e") | made | {"run": run | {"unet_bs": 8}})
        ledger.append(done("f") | made | {"model": {"fingerprints": {"vae": "g"}}})
        assert len(ledger.ways) == 3
    assert (way.model, way.size, way.making.unet_bs) == (("f",), (64, 128), 4)
    assert (way.making.device, way.making.threads) == ("cuda", None)


@pytest.mark.parametrize("moved", [False, True])
def test_records_of_a_folder_that_vanished_are_not_written_into_the_void(tmp_path: Path, moved: bool) -> None:
    folder = tmp_path / "run"
    with Ledger(LocalStore(folder)) as ledger:
        ledger.append(done("a"))
        folder.rename(tmp_path / "elsewhere")
        if moved:
            folder.mkdir()
            (folder / "records.jsonl").touch()
        with pytest.raises(FolderUnwritable, match="the folder has vanished"):
            ledger.append(done("b"))
    assert [record["id"] for record in iterate_records(LocalStore(tmp_path / "elsewhere"))] == ["a"]


def test_appending_counts_at_once(tmp_path: Path) -> None:
    put_image(tmp_path, "images/a.png")
    with Ledger(LocalStore(tmp_path)) as ledger:
        assert not ledger.is_done("a")
        ledger.append(done("a"))
        assert ledger.is_done("a")
        assert ledger.owner("images/a.png") == "a"
        ledger.append(failed("a"))
        assert not ledger.is_done("a")
        assert ledger.owner("images/a.png") is None


def test_a_file_that_another_item_wrote_over_is_no_longer_the_first_ones(tmp_path: Path) -> None:
    put_image(tmp_path, "images/x.png")
    with Ledger(LocalStore(tmp_path)) as ledger:
        ledger.append(done("a", "images/x.png"))
        ledger.append(done("b", "images/x.png"))
        assert ledger.owner("images/x.png") == "b"
        assert finished_ids(ledger) == {"b"}
        ledger.append(done("a", "images/y.png"))
        assert (ledger.owner("images/x.png"), ledger.owner("images/y.png")) == ("b", "a")


def test_an_item_that_moved_leaves_its_old_path(tmp_path: Path) -> None:
    with Ledger(LocalStore(tmp_path)) as ledger:
        ledger.append(done("a", "images/x.png"))
        ledger.append(done("a", "images/y.png"))
        assert (ledger.owner("images/x.png"), ledger.owner("images/y.png")) == (None, "a")


def test_a_tail_torn_at_any_byte_is_set_aside(tmp_path: Path) -> None:
    whole, last = written(tmp_path, done("a"), failed("b")), orjson.dumps(done("c")) + b"\n"
    path = tmp_path / "records.jsonl"
    for cut in range(1, len(last)):
        path.write_bytes(whole + last[:cut])
        (tmp_path / "records.torn").unlink(missing_ok=True)
        with Ledger(LocalStore(tmp_path)) as ledger:
            assert path.read_bytes() == whole
            assert (tmp_path / "records.torn").read_bytes() == last[:cut] + b"\n"
            ledger.append(done("d"))
        assert [record["id"] for record in iterate_records(LocalStore(tmp_path))] == ["a", "b", "d"]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"\0\0\n", b'{"id": 1}\n', b"17\n", b"\xff\xfe\n", b"[" * 5000 + b"\n"])
def test_a_last_line_that_is_no_record_is_set_aside(tmp_path: Path, tail: bytes) -> None:
    whole = written(tmp_path, done("a"))
    (tmp_path / "records.jsonl").write_bytes(whole + tail)
    with Ledger(LocalStore(tmp_path)):
        assert (tmp_path / "records.jsonl").read_bytes() == whole
    assert (tmp_path / "records.torn").read_bytes().rstrip(b"\n") == tail.rstrip(b"\n")


def test_torn_tails_gather(tmp_path: Path) -> None:
    for tail in (b'{"first', b'{"second'):
        (tmp_path / "records.jsonl").write_bytes(tail)
        with Ledger(LocalStore(tmp_path)):
            assert (tmp_path / "records.jsonl").read_bytes() == b""
    assert (tmp_path / "records.torn").read_bytes() == b'{"first\n{"second\n'


def test_a_broken_line_in_the_middle_is_skipped_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [orjson.dumps(done("a")), b'{"id": "b", "sta', b"", b"null", orjson.dumps(done("c")), b""]
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING), Ledger(LocalStore(tmp_path)) as ledger:
        assert ledger.images().keys() == {"a", "c"}
    assert (tmp_path / "records.jsonl").read_bytes() == b"\n".join(lines)
    assert "2 broken lines were skipped, the first is line 2" in caplog.text
    assert not (tmp_path / "records.torn").exists()


def test_reading_for_the_gallery_mends_nothing(tmp_path: Path) -> None:
    data = written(tmp_path, done("a")) + b'{"id": "b'
    (tmp_path / "records.jsonl").write_bytes(data)
    with Ledger(LocalStore(tmp_path / "other")):
        assert [record["id"] for record in iterate_records(LocalStore(tmp_path))] == ["a"]
    assert (tmp_path / "records.jsonl").read_bytes() == data


def test_no_run_folder_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(NoRunFolder, match="there is no run folder"):
        iterate_records(LocalStore(tmp_path / "nowhere"))
    with pytest.raises(NoRunFolder, match=r"no records\.jsonl"):
        iterate_records(LocalStore(tmp_path))


def hold(folder: Path) -> subprocess.Popen[str]:
    root = str(Path(runner.__file__).parents[1])
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_holds_between_processes_and_dies_with_its_owner(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        with pytest.raises(RunFolderHeld, match=str(tmp_path)) as caught, Ledger(LocalStore(tmp_path)):
            pass
        process.kill()
    assert caught.value.exit_code == 11
    with Ledger(LocalStore(tmp_path)) as ledger:
        ledger.append(done("a"))
    assert len(list(iterate_records(LocalStore(tmp_path)))) == 1


def test_the_lock_holds_within_a_process_and_is_given_back(tmp_path: Path) -> None:
    with Ledger(LocalStore(tmp_path)), pytest.raises(RunFolderHeld), Ledger(LocalStore(tmp_path)):
        pass
    with pytest.raises(RuntimeError, match="from within"), Ledger(LocalStore(tmp_path)):
        raise RuntimeError("from within")
    with Ledger(LocalStore(tmp_path)) as ledger:
        assert finished_ids(ledger) == set()


def test_the_lock_is_given_back_when_the_records_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir()
    with pytest.raises(FolderUnwritable, match="is not a file"), Ledger(LocalStore(tmp_path)):
        pass
    (tmp_path / RECORDS).rmdir()
    with Ledger(LocalStore(tmp_path)) as ledger:
        assert not ledger.images()


def test_a_disk_that_fills_up_in_the_middle_of_a_line_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = os.write, []

    def nearly_full(descriptor: int, data: Any) -> int:
        if taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(real(descriptor, bytes(data)[:10]))
        return taken[0]

    with Ledger(LocalStore(tmp_path)) as ledger:
        ledger.append(done("a"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", nearly_full)
            with pytest.raises(FolderUnwritable, match="disk is full") as caught:
                ledger.append(done("b"))
        assert caught.value.exit_code == 12
        assert taken == [10]
        assert "b" not in ledger.images()
        ledger.append(done("c"))
    assert [record["id"] for record in iterate_records(LocalStore(tmp_path))] == ["a", "c"]


def test_a_short_write_is_completed(tmp_path: Path, system) -> None:
    real = os.write
    with Ledger(LocalStore(tmp_path)) as ledger:
        system(os, write=lambda descriptor, data: real(descriptor, bytes(data)[:7]))
        ledger.append(done("a"))
    assert list(iterate_records(LocalStore(tmp_path))) == [done("a")]


def test_flushing_reaches_the_disk_and_its_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Ledger(LocalStore(tmp_path)) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(FolderUnwritable, match="the disk reports an error"):
                ledger.flush()
        ledger.flush()


@pytest.mark.parametrize("record", [{}, {"id": "a"}, {"id": "a", "status": "done"}, {"id": 1, "status": "failed"}])
def test_what_is_no_record_is_not_written(tmp_path: Path, record: dict[str, Any]) -> None:
    with Ledger(LocalStore(tmp_path)) as ledger, pytest.raises(ValueError, match="not a record"):
        ledger.append(record)
    assert (tmp_path / "records.jsonl").read_bytes() == b""


def test_a_hostile_path_in_a_record_is_only_not_done(tmp_path: Path) -> None:
    with Ledger(LocalStore(tmp_path)) as ledger:
        ledger.append(done("a", "nul\0nul"))
        ledger.append(done("b", "x" * 5000))
        assert finished_ids(ledger) == set()


def test_lines_are_numbered_and_those_that_are_no_records_are_told(tmp_path):
    good = b'{"id": "a", "status": "failed"}\n'
    (tmp_path / RECORDS).write_bytes(good + b"\n" + b"{broken\n" + good + good[:-1])
    found = list(numbered_records(LocalStore(tmp_path)))
    assert [(line, record is not None) for line, record in found] == [(1, True), (3, False), (4, True), (5, False)]
    with pytest.raises(NoRunFolder):
        list(numbered_records(LocalStore(tmp_path / "nowhere")))


def test_a_line_without_end_is_skipped_in_pieces(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, longest_line=1000)
    with (tmp_path / RECORDS).open("wb") as file:
        file.write(b"\0" * 5500 + b"\n" + orjson.dumps(done("a", "images/a.png")) + b"\n" + b"\0" * 3500)
    assert [record["id"] for record in iterate_records(store)] == ["a"]
    with Ledger(store) as ledger:
        assert list(ledger.images()) == ["a"]
    assert (tmp_path / TORN).stat().st_size == 3501


def test_a_ledger_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORDS)
    with pytest.raises(FolderUnwritable, match="is not a file"), Ledger(LocalStore(tmp_path)):
        pass


def test_a_claimed_path_is_taken_before_its_record_is_there(tmp_path):
    one, two = "a" * 64, "b" * 64
    with Ledger(LocalStore(tmp_path / "out")) as ledger:
        assert ledger.claim("images/x.png", one) == "images/x.png" == ledger.claim("images/x.png", one)
        assert ledger.claim("images/x.png", two) == f"images/x_{two[:12]}.png" == ledger.claim("images/x.png", two)
        assert not ledger.images() and ledger.owner("images/x.png") == one


def test_an_index_keeps_hashes_if_it_is_asked_to(tmp_path):
    store = LocalStore(tmp_path / "out")
    with pytest.raises(NoRunFolder):
        read_index(store, must_exist=True)
    with Ledger(store) as ledger:
        ledger.append({"id": "a", "status": "done", "image": "images/x.png", "bytes": 1, "sha256": "f" * 64})
    assert read_index(store, hashes=True, must_exist=True).hashes() == {"a": "f" * 64}
    assert read_index(store).hashes() == {"a": ""}
