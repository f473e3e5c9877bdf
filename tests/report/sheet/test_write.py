"""The sheet in a run folder: pictures in their places, labels on both sides, pages, whatever the pictures are."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path

import pytest
from builders import failure, make_item, matrix, run_folder
from PIL import Image
from sheets import items_of, sweep

from runner.errors import FolderUnwritable
from runner.folder.local import LocalStore
from runner.folder.names import image_path, thumbnail_name
from runner.item import Item
from runner.report.gallery import build
from runner.report.sheet import paper, write
from runner.report.sheet.arrange import Items, arrange
from runner.report.sheet.draw import BLANK, read_small
from runner.report.sheet.fonts import Fonts
from runner.report.sheet.lettering import Lettering
from runner.report.sheet.paper import lay_out
from runner.report.sheet.write import render

WHITE = (255, 255, 255)


def shown(swept: list[Item]) -> Items:
    items = items_of(swept)
    items.paths[:] = [str(image_path(item)) for item in swept]
    return items


def corners(items: Items) -> tuple[dict[int, tuple[int, int]], paper.Measures]:
    """Where the picture of each item is on the first page."""
    measures, pages = lay_out(arrange(items), set(items.sizes), Lettering(Fonts()), "")
    found = {}
    for block, (x, y) in pages[0].placed:
        (left, top), (across, down) = measures.origin_of(block), measures.step
        for (row, column), item in block.cells.items():
            found[item] = x + left + column * across, y + top + row * down
    return found, measures


def page_of(store: LocalStore, items: Items) -> Image.Image:
    (image,) = render(store, items, None, Lettering(Fonts()))
    return image


@pytest.mark.parametrize("axes", [{"scale": [1.0, 2.0]}, {"scale": [1.0, 2.0], "sampler": ["ddim", "plms"]}, {}])
def test_pictures_are_in_their_places(tmp_path: Path, axes: dict) -> None:
    swept = sweep(prompt=["a", "b"], **axes, seed=[1, 2, 3])
    image = page_of(LocalStore(run_folder(tmp_path, swept)), items := shown(swept))
    found, measures = corners(items)
    assert found.keys() == set(range(len(swept)))
    for item, (x, y) in found.items():
        for spot in ((x + 1, y + 1), (x + measures.box[0] // 2, y + measures.box[1] // 2)):
            assert image.getpixel(spot) == (item * 20 % 200, 90, 200)


def test_labels_are_on_all_sides(tmp_path: Path) -> None:
    swept = matrix(2, 2)
    image = page_of(LocalStore(run_folder(tmp_path, swept)), items := shown(swept))
    found, measures = corners(items)
    (left, top), (right, bottom) = found[0], found[3]
    width, height = measures.box
    sides = [
        (0, top, left - 1, top + height), (right + width + 6, top, image.width, top + height),
        (left, 0, left + width, top - 1), (left, bottom + height + 1, left + width, bottom + height + measures.over),
    ]  # fmt: skip
    for side in sides:
        assert image.crop(side).getextrema() != ((255, 255),) * 3


def test_failed_missing_broken_and_unmade_cells_differ_from_pictures(tmp_path: Path) -> None:
    swept = matrix(2, 3)
    run_folder(tmp_path, swept, failure(swept[1]))
    (tmp_path / image_path(swept[2])).unlink()
    (tmp_path / image_path(swept[3])).write_bytes(b"no picture")
    items = shown(swept)
    items.problems.update({1: "failed: BlackPicture: came out black"})
    items.made[4] = False
    items.paths[4] = ""
    image = page_of(LocalStore(tmp_path), items)
    found, measures = corners(items)
    near_the_end = {item: (x + measures.box[0] - 3, y + measures.box[1] - 3) for item, (x, y) in found.items()}
    blank = tuple(bytes.fromhex(BLANK[1:]))
    assert [image.getpixel(near_the_end[item]) for item in (1, 2, 3)] == [blank] * 3
    assert image.getpixel(near_the_end[4]) == WHITE and image.getpixel(found[4]) == blank
    assert image.getpixel(near_the_end[5]) == (100, 90, 200)


def test_the_gallery_writes_the_sheet_and_removes_pages_that_are_no_longer(tmp_path: Path, limit) -> None:
    run_folder(tmp_path, matrix(30, 6))
    (tmp_path / "grid-mine.png").write_bytes(b"mine")
    limit(paper, MAX_PIXELS=1_000_000)
    build(LocalStore(tmp_path))
    pages = sorted(path.name for path in tmp_path.glob("grid*.png"))
    assert len(pages) > 3 and {"grid.png", "grid-2.png", "grid-mine.png"} < set(pages)
    for name in set(pages) - {"grid-mine.png"}:
        with Image.open(tmp_path / name) as image:
            assert image.width * image.height <= 1_000_000
    run_folder(tmp_path, matrix(2, 2))
    build(LocalStore(tmp_path))
    assert {path.name for path in tmp_path.glob("grid*.png")} == {"grid.png", "grid-mine.png"}


def test_a_thumbnail_that_is_large_enough_stands_for_its_picture(tmp_path: Path) -> None:
    swept = [make_item(width=512, height=512)]
    items = shown(swept)
    run_folder(tmp_path, swept)
    thumbnail = tmp_path / thumbnail_name(items.paths[0])
    thumbnail.parent.mkdir(parents=True)
    Image.new("RGB", (256, 256), "#ff0000").save(thumbnail, "WEBP", lossless=True)
    assert page_of(LocalStore(tmp_path), items).getpixel((100, 100)) == (255, 0, 0)
    thumbnail.write_bytes(b"broken")
    assert page_of(LocalStore(tmp_path), items).getpixel((100, 100)) == (0, 90, 200)


def test_a_picture_far_larger_than_its_box_is_reduced(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Image.new("RGB", (9000, 3000), "#804020").save(tmp_path / "large.png", compress_level=1)
    Image.new("RGB", (9000, 3000), "#804020").save(tmp_path / "large.jpg")
    for name in ("large.png", "large.jpg"):
        small = read_small(store, name, (120, 120), ("PNG", "JPEG"))
        assert small is not None and small.size == (120, 40)
        assert all(abs(a - b) < 4 for a, b in zip(small.getpixel((60, 20)), (128, 64, 32), strict=True))
    assert read_small(store, "large.png", (120, 120), ("JPEG",)) is None
    assert read_small(store, "none.png", (120, 120), ("PNG",)) is None


class Down(LocalStore):
    """A store that doesn't answer."""

    def open(self, name: str) -> BufferedReader:
        raise FolderUnwritable("the store is down")


def test_a_store_that_is_down_is_no_broken_picture(tmp_path: Path) -> None:
    with pytest.raises(FolderUnwritable, match="is down"):
        page_of(Down(tmp_path), shown(matrix(1, 2)))


def test_hostile_texts_cost_nothing_but_their_looks(tmp_path: Path) -> None:
    prompts = ["", "nul \0 \x1b and\nlines", "\u202eturned \u2028", "x" * 5000, "\u0301" * 400, "猫 🏔️ قطة", "\ud800"]
    swept = [make_item(number=n, prompt=text, seed=seed) for n, (text, seed) in
             enumerate((text, seed) for text in prompts for seed in (1, 2))]  # fmt: skip
    items = shown(swept)
    assert page_of(LocalStore(tmp_path), items).width < 2000
    assert write(LocalStore(tmp_path), items_of([])) == 1
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size[0] == paper.NARROWEST


def test_the_same_sheet_is_the_same_bytes(tmp_path: Path) -> None:
    swept = matrix(2, 3)
    store = LocalStore(run_folder(tmp_path, swept))
    write(store, shown(swept))
    before = (tmp_path / "grid.png").read_bytes()
    write(store, shown(swept))
    assert (tmp_path / "grid.png").read_bytes() == before
