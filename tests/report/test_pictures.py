"""What the reports show: the newest record of every item, and a picture only where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import failure, make_item, matrix, record, run_folder

from runner.errors import NoRunFolder
from runner.folder.local import LocalStore
from runner.folder.names import image_path
from runner.item import item_id
from runner.report.pictures import common_settings, read_pictures
from runner.report.wanted import Wanted


def read(folder):
    return read_pictures(LocalStore(folder))


def test_items_come_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    items = matrix(2, 2)
    pictures = read(run_folder(tmp_path, [items[3], items[0], items[2], items[1]]))
    assert [picture.item["number"] for picture in pictures] == [0, 1, 2, 3]
    assert [picture.path for picture in pictures] == [str(image_path(item)) for item in items]
    for picture in pictures:
        with picture.open() as file:
            assert file.read() == (tmp_path / picture.path).read_bytes() and not picture.problem


def test_the_newest_record_counts(tmp_path: Path) -> None:
    items = matrix(1, 2)
    run_folder(tmp_path, items, failure(items[0]), failure(items[1]), record(items[0]))
    assert [picture.failed for picture in read(tmp_path)] == [False, True]


def test_what_failed_or_is_missing_says_so(tmp_path: Path) -> None:
    items = matrix(1, 2)
    run_folder(tmp_path, items, failure(items[0]))
    (tmp_path / image_path(items[1])).unlink()
    failed, missing = read(tmp_path)
    assert (failed.open, failed.failed, failed.problem) == (None, True, "failed: BlackPicture: came out <black>")
    assert (missing.open, missing.failed, missing.problem) == (None, False, f"missing: {image_path(items[1])}")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "images/../../x.png", "", "a\0b", "images"])
def test_a_path_that_leaves_the_folder_is_no_picture(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    folder = run_folder(tmp_path / "run", [], record(make_item(), image=path))
    (picture,) = read(folder)
    assert picture.open is None and picture.problem.startswith("missing")


def test_a_record_that_lacks_nearly_everything_is_a_picture_too(tmp_path: Path) -> None:
    (picture,) = read(run_folder(tmp_path, [], {"id": "a", "status": "failed", "item": "odd"}))
    assert (picture.prompt, picture.size, picture.axes) == ("", (512, 512), {})
    assert picture.settings() == {"model": "?", "size": "?x?"}
    assert picture.problem == "failed: error: unknown"


def test_settings_are_what_is_said_of_a_picture(tmp_path: Path) -> None:
    items = [make_item(number=0, scale=5.0, negative="blurry"), make_item(number=1, scale=7.5)]
    first, second = read(run_folder(tmp_path, items))
    assert (first.settings()["negative"], first.settings()["size"], first.settings()["scale"]) == (
        "blurry",
        "64x64",
        "5",
    )
    assert not {"negative", "prompt", "seed", "number", "axes", "parts"} & set(second.settings())
    common = common_settings([first, second])
    assert (common["model"], common["steps"]) == ("emoji", "20")
    assert not {"scale", "negative"} & set(common)
    assert common_settings([]) == {}


def test_pictures_stand_as_the_manifest_asks_for_them(tmp_path: Path) -> None:
    items = matrix(1, 4)
    folder = run_folder(tmp_path, [], *(record(item, id=item_id(item)) for item in items))
    wanted = Wanted.of([items[3], items[1], items[0]])
    wanted.save(LocalStore(folder))
    assert [picture.item["seed"] for picture in read(folder)] == [3, 1, 0]
    assert [picture.item["seed"] for picture in read_pictures(LocalStore(folder), 2)] == [3, 1]


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRunFolder):
        read(tmp_path)
