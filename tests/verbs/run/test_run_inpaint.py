"""Inpainting from the command line: pictures by the folder, records that make them again, and what `plan` says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from runner import cli
from runner.images import inits, masks

JOBS = """version: 1
name: windows
defaults: {steps: 3, strength: 0.8, sampler: euler}
jobs:
- {prompts: [a cat], seeds: 1-2, init: "photos/*.png", mask: "masks/*.png", mask_blur: 2}
- {prompts: [a dog], seed: 3, init: photos/img2.png, crop: [64, 0, 128, 64], mask: masks/img2.png, mask_blur: 0}
- {prompts: [a dog], seed: 3, init: photos/img2.png}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "tiny")
    for name in ("photos", "masks"):
        Path(name).mkdir()
    generator = np.random.default_rng(1)
    for number in (2, 10):
        pixels = generator.integers(0, 256, (64, 128, 3), np.uint8)
        Image.fromarray(pixels).save(f"photos/img{number}.png")
        levels = np.zeros((64, 128), np.uint8)
        levels[8:56, 72:120] = 255
        Image.fromarray(levels).save(f"masks/img{number}.png")
    Path("windows.yaml").write_text(JOBS)
    inits.examine.cache_clear()
    masks.examine.cache_clear()
    return tmp_path


def records(out="outputs/windows"):
    found = [json.loads(line) for line in Path(out, "records.jsonl").read_text().splitlines()]
    assert all(record["status"] == "done" for record in found), found
    return {record["item"]["number"]: record for record in found}


def pixels_of(record, out="outputs/windows"):
    return np.asarray(Image.open(Path(out, record["image"])))


def test_what_is_kept_is_kept_and_the_folder_makes_its_pictures_again(folder, capsys):
    assert cli.main(["run", "windows.yaml", "model.path=tiny"]) == 0
    found = records()
    assert [found[n]["item"]["axes"].get("init") for n in range(6)] == ["img2.png"] * 2 + ["img10.png"] * 2 + [None] * 2
    for number in range(4):
        init = np.asarray(Image.open(f"photos/{found[number]['item']['axes']['init']}"))
        made = pixels_of(found[number])
        assert np.array_equal(made[:, :56], init[:, :56]) and not np.array_equal(
            made[16:48, 80:112], init[16:48, 80:112]
        )
    cut, plain = pixels_of(found[4]), pixels_of(found[5])
    init = np.asarray(Image.open("photos/img2.png"))[:, 64:]
    kept = np.ones((64, 64), bool)
    kept[8:56, 8:56] = False
    assert np.array_equal(cut[kept], init[kept]) and not np.array_equal(cut[~kept], init[~kept])
    assert "mask" not in found[5]["item"] and plain.shape == (64, 128, 3)
    wish = found[0]["item"]
    assert wish["mask_blur"] == 2 and "mask_blur" in found[4]["item"]
    copy = Path("outputs/windows", wish["mask"]).read_bytes()
    assert hashlib.sha256(copy).hexdigest() == wish["mask_sha256"]
    for name in ("photos", "masks"):
        (folder / name).rename(folder / f"gone-{name}")
    assert cli.main(["verify", "outputs/windows"]) == 0
    assert cli.main(["run", "outputs/windows/records.jsonl", "out=again"]) == 0
    made = {each["id"]: each["pixels"] for each in found.values()}
    assert {each["id"]: each["pixels"] for each in records("again").values()} == made
    capsys.readouterr()
    assert cli.main(["extract", "outputs/windows"]) == 0
    Path("extracted.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["run", "extracted.yaml", "model.path=tiny", "out=third"]) == 0
    assert {each["id"]: each["pixels"] for each in records("third").values()} == made


def test_a_mask_that_was_altered_is_told(folder, capsys):
    assert cli.main(["run", "windows.yaml", "model.path=tiny", "limit=1"]) == 0
    [record] = records().values()
    Image.new("L", (128, 64), 255).save(Path("outputs/windows", record["item"]["mask"]))
    capsys.readouterr()
    assert cli.main(["verify", "outputs/windows"]) == 5
    assert f"damaged     {record['image']}  the mask that is laid over that" in capsys.readouterr().out


def test_lines_pair_pictures_with_masks(folder):
    usual = {"prompt": "a cat", "steps": 2, "strength": 0.8}
    lines = [{**usual, "seed": n, "init": f"photos/img{n}.png", "mask": f"masks/img{n}.png"} for n in (2, 10)]
    Path("items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["run", "items.jsonl", "model.path=tiny", "out=lines"]) == 0
    assert [Path(each["item"]["mask"]).parent.name for each in records("lines").values()] == ["inits", "inits"]


def test_what_does_not_fit_is_said_before_anything_is_loaded(folder, capsys):
    Image.new("L", (64, 64), 255).save("masks/img3.png")
    assert cli.main(["plan", "windows.yaml", "model.path=tiny"]) == 4
    said = capsys.readouterr().err
    assert "windows.yaml:5:" in said and "init has 2 and mask has 3" in said
    Path("masks/img2.png").unlink()
    assert cli.main(["plan", "windows.yaml", "model.path=tiny"]) == 4
    assert "the mask has 64x64 pixels" in capsys.readouterr().err
