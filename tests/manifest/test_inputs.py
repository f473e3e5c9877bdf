"""Init pictures and masks: by the folder, in pairs, and what doesn't fit together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from schemas import complaints

from runner.errors import Location, ManifestError
from runner.item import Item, item_id
from runner.manifest import inputs
from runner.manifest.inputs import natural
from runner.manifest.items import Items
from runner.manifest.lines import read_item, read_items
from runner.manifest.read import load


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path) -> None:
    """Three pictures with their masks, some of another size, and what is beside them."""
    (tmp_path / "photos/deep").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    (tmp_path / "wide").mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (64, 128), (number, 0, 0)).save(tmp_path / f"photos/img{number}.png")
        Image.new("L", (64, 128), 255 - number).save(tmp_path / f"masks/img{number}.png")
    Image.new("RGB", (64, 128), "red").save(tmp_path / "photos/deep/img2.png")
    Image.new("RGB", (64, 128), "red").save(tmp_path / "photos/.hidden.png")
    Image.new("RGB", (128, 64)).save(tmp_path / "wide/a.png")
    (tmp_path / "photos/notes.txt").write_text("no picture")


def items(folder: Path, body: str, **more: Any) -> list[Item]:
    text = f"version: 1\njobs:\n- {{prompt: cat, seed: 1, {body}}}\n"
    assert complaints(text) == []
    (folder / "m.yaml").write_text(text)
    return list(Items(load(folder / "m.yaml", overrides={}, allow_outside=False, **more), {}))


def names(found: list[Item]) -> list[str]:
    return [Path(item.init or "").name for item in found]


def refusal(folder: Path, body: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        items(folder, body)
    [error] = caught.value.errors
    assert "\n" not in error.message and error.location.line == 3
    return error


def test_a_pattern_is_an_axis_in_the_order_of_people(tmp_path: Path) -> None:
    found = items(tmp_path, 'init: "photos/*.png"')
    assert names(found) == ["img1.png", "img2.png", "img10.png"]
    assert [item.axes for item in found] == [(("init", name),) for name in names(found)]
    assert len(items(tmp_path, 'init: "wide/*.png"')) == 1


def test_a_list_holds_paths_and_patterns(tmp_path: Path) -> None:
    found = items(tmp_path, 'init: [wide/a.png, "photos/img?.png"]')
    assert names(found) == ["a.png", "img1.png", "img2.png"]
    assert [(item.width, item.height) for item in found] == [(128, 64), (64, 128), (64, 128)]


def test_two_stars_are_any_folders_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    found = items(tmp_path, 'init: "photos/**/*.png"')
    assert [dict(item.axes)["init"] for item in found] == [
        "photos/deep/img2.png",
        "img1.png",
        "photos/img2.png",
        "img10.png",
    ]
    (tmp_path / "photos/notes.txt").unlink()
    assert names(items(tmp_path, 'init: "photos/**"')) == names(found)


@pytest.mark.parametrize("section", ["matrix", "zip"])
def test_a_pattern_stands_where_a_list_stands_or_in_it(tmp_path: Path, section: str) -> None:
    whole = items(tmp_path, f'{section}: {{init: "photos/img*.png"}}')
    parts = items(tmp_path, f'{section}: {{init: ["photos/img?.png", photos/img10.png]}}')
    assert names(whole) == names(parts) == ["img1.png", "img2.png", "img10.png"]
    assert names(items(tmp_path, f"{section}: {{init: photos/img1.png}}")) == ["img1.png"]


def test_pictures_and_masks_of_a_job_are_walked_together(tmp_path: Path) -> None:
    found = items(tmp_path, 'init: "photos/*.png", mask: "masks/*.png", matrix: {steps: [3, 4]}')
    pairs = [(Path(item.init or "").name, Path(item.value("mask")).name, item.steps) for item in found]
    assert pairs == [(f"img{n}.png", f"img{n}.png", steps) for n in (1, 2, 10) for steps in (3, 4)]
    assert [key for key, _ in found[0].axes] == ["init", "mask", "steps"]
    zipped = items(tmp_path, 'zip: {init: "photos/*.png", mask: "masks/*.png"}')
    assert [item_id(item) for item in zipped] == [item_id(item._replace(steps=50)) for item in found[::2]]


def test_one_mask_goes_with_many_pictures_and_many_with_one(tmp_path: Path) -> None:
    one = items(tmp_path, 'init: "photos/*.png", mask: masks/img1.png')
    many = items(tmp_path, 'init: photos/img1.png, mask: "masks/*.png"')
    assert len(one) == len(many) == 3
    assert {item.value("mask") for item in one} == {str(tmp_path / "masks/img1.png")}
    assert len(items(tmp_path, 'matrix: {init: "photos/*.png", mask: "masks/*.png"}')) == 9


def test_prompts_vary_slower_than_pictures_and_these_slower_than_the_matrix(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        "version: 1\njobs: [{prompts: [a, b], seeds: 1-2, init: [photos/img1.png, photos/img2.png]}]"
    )
    found = list(Items(load(tmp_path / "m.yaml", overrides={}, allow_outside=False), {}))
    keys = [(item.prompt, Path(item.init or "").name, item.seed) for item in found]
    assert keys == [(prompt, f"img{n}.png", seed) for prompt in "ab" for n in (1, 2) for seed in (1, 2)]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    for name in ("img[1].png", "a*b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    assert names(items(tmp_path, 'init: "img[1].png"')) == ["img[1].png"]
    assert items(tmp_path, 'init: "a*b.png"')[0].axes == ()
    assert names(items(tmp_path, 'init: ["*.png"]')) == ["a*b.png", "img[1].png"]


def test_an_item_is_left_out_by_its_picture(tmp_path: Path) -> None:
    found = items(tmp_path, 'init: "photos/*.png", exclude: [{init: photos/img2.png}]')
    assert names(found) == ["img1.png", "img10.png"]
    assert "no item of the job has" in refusal(tmp_path, 'init: "photos/*.png", exclude: [{init: wide/a.png}]').message


def test_an_include_says_which_picture_where_its_job_has_several(tmp_path: Path) -> None:
    job = 'init: "photos/*.png", include: [{prompt: dog%s}]'
    assert names(items(tmp_path, job % ", init: wide/a.png"))[-1] == "a.png"
    assert "an include needs a 'init' of its own, since its job has 3" in refusal(tmp_path, job % "").message
    assert names(items(tmp_path, "init: [wide/a.png], include: [{prompt: dog}]")) == ["a.png", "a.png"]


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ('init: "none/*.png"', ["init: 'none/*.png' finds no file"]),
        ('matrix: {init: ["photos/*.gif"]}', ["finds no file"]),
        ('init: "photos/*"', ["photos/notes.txt", "is not a picture"]),
        ('init: "../*.png"', ["leaves the manifest's folder"]),
        ('init: ["photos/*/../../../*.png"]', ["leaves the manifest's folder"]),
        ('init: "photos/*/../*.png"', ["is not a pattern ('..' behind a '*')"]),
        ('init: "photos/*.png", mask: ["masks/img?.png"]', ["init has 3 and mask has 2"]),
        ('zip: {init: "photos/*.png", mask: ["masks/img?.png"]}', ["init has 3, mask has 2"]),
        ('init: "photos/*.png", matrix: {init: [wide/a.png]}', ["can't stand together"]),
        ('include: [{init: "photos/*.png"}]', ["no such file; a pattern can stand in a job"]),
        ("mask: masks/img1.png", ["'mask' needs an 'init'"]),
        ("init: wide/a.png, mask: masks/img1.png", ["the mask has 64x128 pixels, and", "has 128x64"]),
        ('init: "**/*.png", mask: masks/img1.png', ["the mask has 64x128 pixels"]),
        ("zip: {init: [photos/img1.png, wide/a.png], mask: [masks/img1.png, masks/img2.png]}", ["has 128x64"]),
        ("init: photos/img1.png, mask: none.png", ["mask: ", "there is no such file"]),
        ("init: photos/img1.png, mask: photos/notes.txt", ["mask: ", "not a picture"]),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_told_with_its_place(tmp_path: Path, body: str, parts: list[str]) -> None:
    message = refusal(tmp_path, body).message
    assert all(part in message for part in parts), message


def test_defaults_and_overrides_hold_one_picture(tmp_path: Path) -> None:
    text = "version: 1\ndefaults: {init: photos/img1.png, mask: %s}\njobs: [{prompt: cat, seed: 1}]\n"
    (tmp_path / "m.yaml").write_text(text % "masks/img1.png")
    manifest = load(tmp_path / "m.yaml", overrides={"mask": "masks/img2.png"}, allow_outside=False)
    assert Items(manifest, {})[0].value("mask") == str(tmp_path / "masks/img2.png")
    assert complaints(text % "[masks/img1.png]")
    (tmp_path / "m.yaml").write_text(text % "'masks/*.png'")
    with pytest.raises(ManifestError, match="a pattern can stand in a job"):
        load(tmp_path / "m.yaml", overrides={}, allow_outside=False)


def test_there_are_no_more_pictures_than_can_be_looked_at(tmp_path: Path, limit: Any) -> None:
    limit(inputs, MOST_VALUES=2)
    assert "finds more than 2 files" in refusal(tmp_path, 'init: "photos/*.png"').message
    assert "init: 3 pictures; the most is 2" in refusal(tmp_path, 'init: ["photos/img?.png", wide/a.png]').message


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside.png"
    Image.new("RGB", (64, 64)).save(outside)
    (tmp_path / "wide/link.png").symlink_to(outside)
    assert "'wide/link.png' leaves the manifest's folder" in refusal(tmp_path, 'init: "wide/*.png"').message
    (tmp_path / "wide/link.png").unlink()
    (tmp_path / "wide/round").symlink_to(tmp_path / "wide")
    assert names(items(tmp_path, 'init: "wide/**/*.png"')) == ["a.png"]


def test_numbers_in_names_count_by_their_value() -> None:
    wanted = ["a.png", "a2.png", "A10.png", "a10b.png", "b/1.png", "b/01.png", "b/x.png", "c.png"]
    assert sorted(reversed(wanted), key=natural) == [
        "a.png", "a2.png", "A10.png", "a10b.png", "b/01.png", "b/1.png", "b/x.png", "c.png",
    ]  # fmt: skip


# ---- what an item says of its mask


def test_a_mask_is_part_of_the_item_and_its_blur_only_with_it(tmp_path: Path) -> None:
    plain = items(tmp_path, "init: photos/img1.png")[0]
    assert plain.extra == () and items(tmp_path, "init: photos/img1.png, mask_blur: 9")[0] == plain
    masked = items(tmp_path, "init: photos/img1.png, mask: masks/img1.png, mask_blur: 9, clip_skip: 2")[0]
    assert [key for key, _ in masked.extra] == ["mask", "mask_sha256", "mask_blur", "clip_skip"]
    assert len({item_id(item) for item in (plain, masked, masked.with_pictures("x", "y"))}) == 2
    other = items(tmp_path, "init: photos/img1.png, mask: masks/img2.png, mask_blur: 9, clip_skip: 2")[0]
    assert item_id(other) != item_id(masked)


def test_a_line_holds_a_picture_and_a_mask(tmp_path: Path) -> None:
    lines = [{"prompt": "a", "seed": 1, "init": f"photos/img{n}.png", "mask": f"masks/img{n}.png"} for n in (1, 2)] + [
        {"prompt": "a", "seed": 1, "init": "photos/img1.png", "mask": None, "mask_blur": 9}
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = read_items(tmp_path / "items.jsonl")
    assert Path(second.value("mask")) == tmp_path / "masks/img2.png"
    assert (first.width, third.extra) == (64, ())
    again = read_item(first.to_dict(), number=0, location=Location(tmp_path / "items.jsonl", 1, 1))
    assert again == first


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ({"mask": "masks/img1.png"}, "'mask' needs an 'init'"),
        ({"init": "wide/a.png", "mask": "masks/img1.png"}, "the mask has 64x128 pixels"),
        ({"init": "photos/img1.png", "mask": "masks/none.png"}, "mask: "),
        ({"init": "photos/img1.png", "mask": "masks/img1.png", "mask_sha256": "0" * 64}, "is another picture than"),
        ({"init": ["photos/img1.png"]}, "expected a text"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: dict[str, Any], part: str) -> None:
    (tmp_path / "items.jsonl").write_text(json.dumps({"prompt": "a", "seed": 1} | line) + "\n")
    with pytest.raises(ManifestError) as caught:
        read_items(tmp_path / "items.jsonl")
    assert part in caught.value.message and caught.value.location.line == 1
