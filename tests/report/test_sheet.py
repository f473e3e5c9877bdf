"""The contact sheet: every picture in its place, within the limits of the sheet, every label within its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_item, matrix, run_folder

from runner.folder.local import LocalStore
from runner.report import sheet
from runner.report.pictures import read_pictures
from runner.report.sheet import render_grid


def read(folder):
    return read_pictures(LocalStore(folder))


def arranged(folder: Path, per_row: int | None = None) -> sheet.Sheet:
    return sheet._arrange(read(folder), per_row)


def test_rows_are_the_first_axis_and_columns_the_others(tmp_path: Path) -> None:
    items = []
    for sampler in ("plms", "ddim"):
        for scale in (5.0, 7.5):
            for prompt in ("a", "b"):
                axes = (("sampler", sampler), ("scale", scale), ("prompt", prompt))
                items.append(make_item(number=len(items), prompt=prompt, sampler=sampler, scale=scale, axes=axes))
    found = arranged(run_folder(tmp_path, items))
    assert found.rows == ["sampler plms", "sampler ddim"]
    assert found.columns == [("scale 5", "a"), ("scale 5", "b"), ("scale 7.5", "a"), ("scale 7.5", "b")]
    assert [found.cells[divmod(number, 4)].item["number"] for number in range(8)] == list(range(8))
    assert sheet._spans(found.columns, 0) == [(0, 1), (2, 3)]


def test_prompt_and_seed_are_axes_without_being_named(tmp_path: Path) -> None:
    found = arranged(run_folder(tmp_path, matrix(2, 3)))
    assert (found.rows, found.columns) == (["prompt 0", "prompt 1"], [("seed 0",), ("seed 1",), ("seed 2",)])
    assert not found.loose


def test_an_item_without_a_place_is_appended(tmp_path: Path) -> None:
    extra = make_item(number=4, prompt="prompt 0", seed=0, negative="blurry")
    found = arranged(run_folder(tmp_path, [*matrix(2, 2), extra]))
    assert len(found.cells) == 4
    assert [picture.item["number"] for picture in found.loose] == [4]
    assert found.captions == ["prompt 0 · seed 0 · blurry"]


@pytest.mark.parametrize(("prompts", "seeds"), [(1, 9), (9, 1), (1, 1)])
def test_one_axis_makes_a_square(tmp_path: Path, prompts: int, seeds: int) -> None:
    found = arranged(run_folder(tmp_path, matrix(prompts, seeds)))
    assert not found.rows and not found.cells
    assert len(found.loose) == prompts * seeds and found.wide**2 == prompts * seeds


def test_a_given_number_of_pictures_in_a_row_makes_a_plain_sheet(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, matrix(2, 3))
    found = arranged(folder, per_row=5)
    assert (found.wide, found.cells, len(found.loose)) == (5, {}, 6)
    pictures = read(folder)
    assert render_grid(pictures, 6).width > render_grid(pictures, 1).width


def test_a_matrix_of_holes_makes_a_square(tmp_path: Path) -> None:
    items = [make_item(number=number, prompt=f"p{number}", seed=number) for number in range(9)]
    found = arranged(run_folder(tmp_path, items))
    assert found.wide == 3 and not found.cells
    assert found.captions[4] == "p4 · seed 4"


def test_the_sheet_shows_the_pictures_in_their_places(tmp_path: Path) -> None:
    pictures = read(run_folder(tmp_path, matrix(2, 3)))
    found = sheet._arrange(pictures)
    measures, image = sheet._fit(found, pictures), render_grid(pictures)
    for (row, column), picture in found.cells.items():
        x, y = sheet._corner((row, column), found, measures)
        middle = image.getpixel((x + measures.box[0] // 2, y + measures.box[1] // 2))
        assert middle == (picture.item["number"] * 20 % 200, 90, 200)
    assert measures.box == (128, 128)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_a_large_sheet_is_scaled_down(tmp_path: Path, limit) -> None:
    pictures = read(run_folder(tmp_path, matrix(4, 5)))
    whole = render_grid(pictures)
    limit(sheet, MAX_PIXELS=200_000)
    image = render_grid(pictures)
    assert image.width * image.height <= 200_000 < whole.width * whole.height


def test_a_sheet_too_large_shows_the_first_and_says_so(tmp_path: Path, limit) -> None:
    limit(sheet, MAX_SIDE=3)
    pictures = read(run_folder(tmp_path, matrix(4, 5)))
    found = sheet._arrange(pictures)
    assert (len(found.rows), len(found.columns), len(found.cells), len(found.loose)) == (3, 3, 9, 0)
    assert sheet._footer(pictures, 9, 20).startswith("the first 9 of 20 items")
    limit(sheet, MAX_PICTURES=4)
    assert len(sheet._arrange(pictures).cells) == 3
    assert len(sheet._arrange(read(run_folder(tmp_path / "one", matrix(1, 9)))).loose) == 4


@pytest.mark.parametrize(
    "text", ["one", "a long line of several words", "x" * 300, "word " * 300, "", "é" * 90, "🙂 家"]
)
@pytest.mark.parametrize("most", [0, 1, 3])
def test_labels_stay_in_their_place(text: str, most: int) -> None:
    font = sheet._font(12)
    lines = sheet._wrap(text, font, 80, most)
    assert len(lines) <= most
    assert all(font.getlength(line) <= 80 for line in lines)


def test_a_label_cut_short_says_so() -> None:
    font = sheet._font(12)
    assert sheet._wrap("a cat", font, 80, 2) == ["a cat"]
    assert sheet._wrap("a cat that sits on a mat", font, 80, 9) == ["a cat that sits", "on a mat"]
    assert sheet._wrap("a cat that sits on a mat", font, 80, 1) == ["a cat that sit…"]
    assert sheet._wrap("Käse", font, 80, 1) == ["Kase"]
