"""The report shows every item, whatever its prompt says and whatever has happened to its picture."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from builders import MODEL, failure, make_item, matrix, record, run_folder
from gallery_data import pieces, shown
from PIL import Image

from runner.errors import FolderUnwritable, NoRunFolder
from runner.folder.local import LocalStore
from runner.folder.names import image_path, thumbnail_name
from runner.item import Item, item_id
from runner.report.gallery import build, watch
from runner.report.gallery.catalog import DONE, FAILED, GONE, MISSING
from runner.report.wanted import Wanted

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <img src=x onerror=alert(1)> ]]>",
    "\" onload='x' & &amp; `$title` $(x) ${y}",
    "50% of #1? 家 🏔️ a+b;c",
    "nul \0 and \x1b escape\nand a line",
    "",
    "\u202eright to left \u2028 \u2029",
]


def width_of(path: Path) -> int:
    with Image.open(path) as image:
        image.load()
        return image.width


def states(folder: Path) -> list[int]:
    return [row["state"] for row in shown(folder)]


def test_every_picture_is_there_whatever_the_prompts_are(tmp_path: Path) -> None:
    items = [make_item(number=number, prompt=prompt) for number, prompt in enumerate(HOSTILE)]
    build(LocalStore(run_folder(tmp_path, items)))
    rows = shown(tmp_path)
    assert [row["values"]["prompt"] for row in rows] == HOSTILE
    assert [row["path"] for row in rows] == [str(image_path(item)) for item in items]
    assert [row["record"]["item"]["prompt"] for row in rows] == HOSTILE
    for path in (tmp_path / "gallery").glob("*.js"):
        assert "<" not in (text := path.read_text("utf-8")) and "\u2028" not in text and "\u2029" not in text


def test_rows_stand_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    items = matrix(2, 2)
    build(LocalStore(run_folder(tmp_path, [items[3], items[0], items[2], items[1]])))
    assert [tuple(row["values"].values()) for row in shown(tmp_path)] == [
        ("prompt 0", "0"), ("prompt 0", "1"), ("prompt 1", "0"), ("prompt 1", "1"),
    ]  # fmt: skip


def test_an_extended_sweep_stands_as_the_manifest_has_it_now(tmp_path: Path) -> None:

    def sweep(*scales: float) -> list[Item]:
        return [make_item(number=n, scale=s, model=MODEL, axes=(("scale", s),)) for n, s in enumerate(scales)]

    before, now = sweep(3.0, 5.0), sweep(1.0, 3.0, 7.0)
    folder = run_folder(tmp_path, [], *(record(item, id=item_id(item)) for item in before))
    wanted = Wanted.of(now)
    assert wanted is not None
    wanted.save(LocalStore(folder))
    build(LocalStore(folder))
    said = pieces(folder)
    assert said["axes"]["columns"] == [{"name": "scale", "values": ["1", "3", "7", "5"], "swept": True}]
    assert states(folder) == [MISSING, GONE, MISSING, GONE]
    assert (said["state"]["rows"], said["state"]["wanted"]) == (4, 3)


def test_what_differs_is_a_column_and_what_does_not_is_common(tmp_path: Path) -> None:
    items = [make_item(number=0, scale=5.0, negative="blurry"), make_item(number=1, scale=7.5, negative="blurry")]
    build(LocalStore(run_folder(tmp_path, items)))
    axes = pieces(tmp_path)["axes"]
    assert [column["name"] for column in axes["columns"]] == ["scale"]
    assert {"negative": "blurry", "steps": "20", "seed": "27", "model": "emoji"}.items() <= axes["common"].items()
    assert not {"eta", "format", "long_prompts"} & axes["common"].keys()


def test_a_sweep_of_models_tells_whose_each_picture_is(tmp_path: Path) -> None:
    one, two = (make_item(number=number, prompt="prompt 0") for number in range(2))
    run_folder(tmp_path, [one, two], record(two, model={"name": "other", "fingerprints": {}}) | {"id": "b" * 64})
    build(LocalStore(tmp_path))
    assert {row["values"]["model"] for row in shown(tmp_path)} == {"emoji", "other"}


def test_a_seed_beyond_the_numbers_of_a_browser_stays_exact(tmp_path: Path) -> None:
    build(LocalStore(run_folder(tmp_path, [make_item(seed=2**63 - 1), make_item(seed=2**53 - 1, number=1)])))
    first, second = shown(tmp_path)
    assert first["values"]["seed"] == str(2**63 - 1)
    assert first["record"]["item"]["seed"] == f"\x01{2**63 - 1}" and second["record"]["item"]["seed"] == 2**53 - 1


def test_failed_and_missing_items_are_told_as_such(tmp_path: Path) -> None:
    items = matrix(1, 4)
    run_folder(tmp_path, items, failure(items[1]))
    (tmp_path / image_path(items[2])).unlink()
    made = build(LocalStore(tmp_path))
    assert (made.items, made.failed) == (4, 1)
    assert states(tmp_path) == [DONE, FAILED, GONE, DONE]
    assert [row["problem"] for row in shown(tmp_path)] == ["", "BlackPicture: came out <black>", "", ""]
    assert width_of(tmp_path / "grid.png") >= 480


def test_one_picture_for_two_places_of_a_sweep_is_in_both(tmp_path: Path) -> None:
    item = make_item(sampler="euler")
    twice = [item._replace(number=n, axes=(("eta", eta),)) for n, eta in enumerate((0.0, 0.5))]
    folder = run_folder(tmp_path, [item], record(item, id=item_id(item)))
    wanted = Wanted.of(twice)
    assert wanted is not None
    wanted.save(LocalStore(folder))
    build(LocalStore(folder))
    assert states(folder)[:2] == [DONE, DONE]
    assert [row["values"]["eta"] for row in shown(folder)[:2]] == ["0", "0.5"]


def test_records_that_lack_nearly_everything_are_shown(tmp_path: Path) -> None:
    bare = [{"id": "a", "status": "failed"}, {"id": "b", "status": "done", "image": "x", "bytes": 1, "item": "odd"}]
    made = build(LocalStore(run_folder(tmp_path, [], *bare)))
    assert (made.items, made.failed) == (2, 1)
    assert states(tmp_path) == [FAILED, GONE]


def test_an_empty_run_has_an_empty_report(tmp_path: Path) -> None:
    assert build(LocalStore(run_folder(tmp_path, []))).items == 0
    assert shown(tmp_path) == [] and pieces(tmp_path)["state"]["rows"] == 0
    assert width_of(tmp_path / "grid.png") >= 480


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRunFolder):
        build(LocalStore(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_report(tmp_path: Path, system) -> None:
    build(LocalStore(run_folder(tmp_path, [make_item()])))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run_folder(tmp_path, matrix(1, 3))
    changed = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    system(os, write=full)
    with pytest.raises(FolderUnwritable):
        build(LocalStore(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == changed
    assert before.keys() < changed.keys()


def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    build(LocalStore(run_folder(tmp_path, matrix(2, 2))))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    build(LocalStore(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_pieces_of_a_larger_report_are_removed_and_nothing_else(tmp_path: Path) -> None:
    build(LocalStore(run_folder(tmp_path, matrix(1, 2))))
    own = {"items-00001.js", "items-00002.js", "records-00001.js"}
    for name in (*own, "mine.js", "items-1.js"):
        (tmp_path / "gallery" / name).write_bytes(b"")
    build(LocalStore(tmp_path))
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == {
        "axes.js", "state.js", "items-00000.js", "records-00000.js", "mine.js", "items-1.js",
    }  # fmt: skip


def test_missing_thumbnails_of_large_pictures_are_made(tmp_path: Path) -> None:
    large, small = make_item(number=0, width=768, height=512), make_item(number=1, width=256, height=256)
    broken = make_item(number=2, width=512, height=512, format="jpg")
    run_folder(tmp_path, [large, small, broken])
    (tmp_path / image_path(broken)).write_bytes(b"no picture")
    before = (tmp_path / image_path(large)).read_bytes()
    build(LocalStore(tmp_path))
    assert not (tmp_path / "thumbs").exists()
    build(LocalStore(tmp_path), thumbnails=True)
    made = [path for path in (tmp_path / "thumbs").rglob("*") if path.is_file()]
    assert made == [tmp_path / thumbnail_name(str(image_path(large)))]
    with Image.open(made[0]) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (256, 171))
    assert (tmp_path / image_path(large)).read_bytes() == before


class Interrupted(Exception):
    """What ends a watch in a test."""


def test_watching_builds_again_when_there_are_records_and_ends_as_a_whole(tmp_path: Path) -> None:
    items, seen = matrix(1, 3), []
    run_folder(tmp_path, items[:1])

    def wait(seconds: float) -> None:
        state = pieces(tmp_path)["state"]
        seen.append((state["rows"], state["running"]))
        assert seconds > 0
        if len(seen) == 3:
            raise Interrupted
        run_folder(tmp_path, items[: len(seen) + 1])

    with pytest.raises(Interrupted):
        watch(LocalStore(tmp_path), wait)
    assert seen == [(1, True), (2, True), (3, True)]
    assert not pieces(tmp_path)["state"]["running"]
