"""Pictures are written by threads while the next ones are made, and no fault of one blocks another."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from builders import MODEL, make_item
from fake_store import FakeStore
from PIL import Image

from runner.errors import FolderUnwritable
from runner.folder.names import image_path, thumbnail_name
from runner.folder.store import LocalStore
from runner.folder.writer import Writer
from runner.images.codec import Pixels, encode, pixels_hash
from runner.item import Item
from runner.record import Written


def noise() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def submit(writer: Writer, item: Item) -> Future[Written]:
    return writer.submit(noise(), item._replace(model=MODEL), image_path(item))


def test_a_writer_writes_and_says_what(tmp_path: Path) -> None:
    items = [make_item(number=number, format=("png", "jpg")[number % 2]) for number in range(20)]
    with Writer(LocalStore(tmp_path), threads=3, waiting=2) as writer:
        futures = [submit(writer, item) for item in items]
    for item, future in zip(items, futures, strict=True):
        written = future.result()
        data = (tmp_path / written.path).read_bytes()
        assert written.path == str(image_path(item))
        assert (written.bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert written.pixels_sha256 == pixels_hash(noise())
        assert data == encode(noise(), item._replace(model=MODEL))
    assert len(list(tmp_path.rglob("*.part"))) == 0


def test_who_submits_too_fast_has_to_wait(tmp_path: Path) -> None:
    gate, accepted = threading.Event(), []

    def submit_all(writer: Writer) -> None:
        for number in range(6):
            accepted.append(submit(writer, make_item(number=number)))

    with Writer(LocalStore(tmp_path), threads=2, waiting=1, encode=lambda *_: b"x" if gate.wait(10) else b"") as writer:
        thread = threading.Thread(target=submit_all, args=(writer,))
        thread.start()
        thread.join(0.2)
        assert len(accepted) == 3 and thread.is_alive()
        gate.set()
        thread.join(10)
    assert [future.result().bytes for future in accepted] == [1] * 6


def test_a_full_disk_is_in_the_future_and_the_next_picture_is_not_blocked() -> None:
    faults = [FolderUnwritable("the disk is full")]

    def before(method: str, name: str) -> None:
        if faults:
            raise faults.pop()

    store = FakeStore(before)

    with Writer(store, threads=1, waiting=0) as writer:
        with pytest.raises(FolderUnwritable, match="disk is full"):
            submit(writer, make_item()).result()
        assert submit(writer, make_item()).result().bytes > 0
    assert list(store.list()) == [str(image_path(make_item()))]


def test_an_error_around_a_writer_gives_up_what_is_waiting(tmp_path: Path) -> None:
    started, gate = threading.Event(), threading.Event()

    def slow(*_: object) -> bytes:
        started.set()
        gate.wait(10)
        return b"x"

    futures = []
    with pytest.raises(KeyboardInterrupt), Writer(LocalStore(tmp_path), threads=1, waiting=4, encode=slow) as writer:
        futures = [submit(writer, make_item(number=number)) for number in range(4)]
        started.wait(10)
        threading.Timer(0.1, gate.set).start()
        raise KeyboardInterrupt
    assert futures[0].result().bytes == 1
    assert all(future.cancelled() for future in futures[1:])


def large_noise() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (320, 640, 3), dtype=np.uint8)


def test_a_large_picture_has_a_thumbnail_and_a_small_one_none(tmp_path: Path) -> None:
    with Writer(LocalStore(tmp_path)) as writer:
        small, large = make_item(number=0, model=MODEL), make_item(number=1, model=MODEL)
        written = [
            writer.submit(pixels, item, image_path(item)).result()
            for pixels, item in ((noise(), small), (large_noise(), large))
        ]
    (thumbnail,) = (path for path in (tmp_path / "thumbs").rglob("*") if path.is_file())
    assert thumbnail == tmp_path / thumbnail_name(written[1].path)
    with Image.open(thumbnail) as picture:
        assert (picture.format, picture.size) == ("WEBP", (256, 128))
    assert written[1].sha256 == hashlib.sha256(encode(large_noise(), large)).hexdigest()


def test_a_thumbnail_that_cannot_be_written_fails_nothing() -> None:
    def refuse(method: str, name: str) -> None:
        if name.startswith("thumbs/"):
            raise FolderUnwritable("the disk is full")

    store, item = FakeStore(refuse), make_item(model=MODEL)
    with Writer(store) as writer:
        written = writer.submit(large_noise(), item, image_path(item)).result()
    assert list(store.files) == [written.path] and written.bytes == len(store.files[written.path])
