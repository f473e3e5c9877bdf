"""Pictures say how to make them again; files that don't are named, and do no harm."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MODEL, make_item, matrix, run_folder
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from runner.folder.names import image_path, thumbnail_name
from runner.images.codec import encode
from runner.item import Item, Model, Part, item_id
from runner.manifest import items as manifest_items
from runner.manifest import read as manifest_read
from runner.manifest import weighted as manifest_weighted
from runner.sampler_names import SAMPLERS
from runner.verbs.extract import Extraction, extract

A1111 = "(cat:1.2), dog:2 b\nNegative prompt: bad\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may decode a picture, but for the manifest's own reading of an init."""
    load = ImageFile.ImageFile.load

    def guarded(image: ImageFile.ImageFile) -> Any:
        assert "init" in str(image.filename), "pixels were decoded"
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", guarded)


def picture(item: Item, path: str | Path = "a.png", model: Model = MODEL) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encode(np.zeros((8, 8, 3), dtype=np.uint8), item._replace(model=model)))
    return Path(path)


def foreign(path: str, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text, zip=len(text) > 10**6)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return Path(path)


def made_again(found: Extraction, allow_outside: bool = False) -> list[Item]:
    Path("m.yaml").write_text(found.manifest, encoding="utf-8")
    read = manifest_read.load(Path("m.yaml"), overrides={}, allow_outside=allow_outside)
    assert not manifest_items.jobs_without_seed(read)
    return list(manifest_items.Items(read, {}))


def ids(items: list[Item]) -> list[str]:
    return [item_id(item) for item in items]


def weighted(prompt: str) -> Item:
    return make_item(prompt=prompt, parts=manifest_weighted.parse(prompt))


KINDS = [
    make_item(prompt="plain"),
    weighted("tabby cat:0.25 white duck:0.75 hybrid"),
    weighted(manifest_weighted.to_text(["a: 3", 'b "', "c:4"], [-0.5, 1.5, 0.1])),
    make_item(prompt="cat:2"),
    make_item(prompt="colon: é 家 🏔️ \"quoted\" 'it' #hash # not", negative="NO: 12:30\nsecond line"),
    make_item(prompt=""),
    make_item(prompt="jpeg", format="jpg"),
    make_item(prompt="x " * 300 + "end", long_prompts="chunk"),
    make_item(prompt="cut", long_prompts="truncate"),
    make_item(prompt="eta", eta=0.3),
    make_item(prompt="odd numbers", scale=0.1 + 0.2, seed=2**63 - 1, width=4096, steps=500),
    *(make_item(prompt=name, sampler=name) for name in SAMPLERS),
    *(
        make_item(prompt=prompt, negative="(bad:1.4), [x|y]", extra=(("prompt_syntax", "a1111"),))
        for prompt in ("a (cat:1.2)", r"[a:b:0.5] \(c\) BREAK <word>", "x:1 y:2 z", "plain", "")
    ),
]  # fmt: skip


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_every_kind_of_picture_is_made_again(format: str) -> None:
    items = [item._replace(number=number, format=format) for number, item in enumerate(KINDS)]
    found = extract([picture(item, f"{item.number}.{format}") for item in items])
    again = made_again(found)
    assert (found.notes, found.problems) == ((), ())
    assert ids(again) == ids(items)
    assert [item.prompt for item in again] == [item.prompt for item in items]
    assert [image_path(item) for item in again] == [image_path(item) for item in items]


def test_a_run_folder_becomes_its_manifest_again(here: Path) -> None:
    items = matrix(2, 20)
    folder = run_folder(here / "run", items)
    Image.new("RGB", (8, 8)).save(folder / "grid.png")
    thumbnail = folder / thumbnail_name(str(image_path(items[0])))
    thumbnail.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(thumbnail)
    found = extract([folder])
    assert found == Extraction(
        manifest="# from 40 pictures\n# model: emoji, unet_encode 0123456789ab, vae ffffffffffff\n"
        "version: 1\ndefaults:\n  width: 64\n  height: 64\n  steps: 20\n  scale: 7.5\n  sampler: ddim\n"
        "jobs:\n- prompts:\n  - prompt 0\n  - prompt 1\n  seeds: 0-19\n",
        notes=(),
        problems=(),
    )
    shuffled = sorted(folder.rglob("seed*.png"), key=lambda path: hash(path.name))
    assert extract([*shuffled, shuffled[0]]).manifest == found.manifest


def img2img(init: bytes, **changes: Any) -> Item:
    sha256 = hashlib.sha256(init).hexdigest()
    return make_item(init=f"inits/{sha256}.png", init_sha256=sha256, strength=0.5, **changes)


def test_an_init_is_found_beside_its_run_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 90)).save("init.png")
    data = Path("init.png").read_bytes()
    items = [img2img(data, crop=(0, 0, 80, 80)), img2img(data, number=1, seed=28, width=128, height=128, format="jpg")]
    files = [picture(item, here / "outputs/i" / image_path(item)) for item in items]
    copy = here / "outputs/i" / items[0].init  # type: ignore[operator]
    missing = extract(files)
    assert missing.notes == (
        f"the init picture isn't in the run folder; put the file with this SHA-256 at {items[0].init} (all pictures)",
    )
    with pytest.raises(manifest_read.ManifestError, match="there is no such file"):
        made_again(missing)

    copy.parent.mkdir()
    copy.write_bytes(data)
    found = extract([here / "outputs"])
    assert f"init: outputs/i/{items[0].init}\n" in found.manifest
    assert (ids(made_again(found)), found.notes) == (ids(items), ())

    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    outside = extract([Path("../outputs")])
    assert "allow_outside=true" in outside.notes[0]
    assert ids(made_again(outside, allow_outside=True)) == ids(items)

    copy.write_bytes(b"another picture")
    assert extract(files).notes[0].startswith("the init picture isn't in the run folder")


@pytest.mark.parametrize("init", ["/etc/passwd", "../../secret.png", "inits/\n- x.png\x1b[31m", "x" * 5000])
def test_an_init_of_a_strange_name_is_not_looked_up(init: str) -> None:
    item = img2img(b"x")
    found = extract([picture(item._replace(init=init))])
    assert f"init: inits/{item.init_sha256}" in found.manifest
    assert "etc" not in found.manifest and "secret" not in found.manifest and "\x1b" not in found.manifest


def test_lent_noise_is_named() -> None:
    owner, other = make_item(seed=7), make_item(seed=8, fixed_code=7, number=1)
    found = extract([picture(other)])
    assert found.notes == ("a picture with seed 7 is added: a.png (fixed_code) begins with its noise",)
    assert ids(made_again(found)) == ids([owner, other])
    both = extract([picture(other), picture(owner, "b.png")])
    assert (both.notes, ids(made_again(both))) == ((), ids([owner, other]))


def test_pictures_of_several_models_become_a_manifest_that_lists_them(here: Path) -> None:
    models = [MODEL, Model(name="x\ny", fingerprints=(("vae", "1" * 64),)), Model(name="emoji")]
    wishes = [(model, seed) for model in models[:2] for seed in (1, 2)] + [(models[2], 1)]
    files = [picture(make_item(seed=seed, number=n), f"{n}.png", model) for n, (model, seed) in enumerate(wishes)]
    (here / "weights/x_y").mkdir(parents=True)
    found = extract(files[:4])
    assert found.manifest.startswith("# from 4 pictures\n# model: emoji, unet_encode 0123456789ab, vae ffffffffffff\n")
    assert "\n# model: x?y, vae 111111111111\n" in found.manifest
    assert found.notes == ("say under 'models' where the weights are: x?y",)  # emoji ships with the package
    assert "models:\n  x?y:\n    path: weights/x_y\n" in found.manifest
    assert "model: [emoji, 'x?y']" in found.manifest
    again = [(item.model.name, item.seed) for item in made_again(found)]
    assert again == [("emoji", 1), ("emoji", 2), ("x?y", 1), ("x?y", 2)]
    assert extract(files[2:4]).manifest.count("x?y") == 1  # one model is chosen with model=


def test_two_models_of_one_name_are_told_apart(here: Path) -> None:
    other = Model(name="emoji", fingerprints=(("unet_encode", "9" * 64),))
    files = [picture(make_item(number=n), f"{n}.png", model) for n, model in enumerate((MODEL, other))]
    for name in ("emoji-01234567", "emoji-99999999"):
        (here / "weights" / name).mkdir(parents=True)
    items = made_again(extract(files))
    assert [item.model.name for item in items] == ["emoji-01234567", "emoji-99999999"]
    assert items[1].model.path == "weights/emoji-99999999"


def test_a_picture_of_automatic1111() -> None:
    files = [foreign("a.png", parameters=f"{A1111}, Eta: 2"), foreign("b.png", parameters=f"{A1111}, ENSD: 1")]
    found = extract(files)
    noise = "from AUTOMATIC1111's program, whose noise is another: similar pictures, not the same"
    assert found.notes == (
        f"{noise} (all pictures)",
        "not carried over: Eta: 2 (a.png)",
        "not carried over: ENSD: 1 (b.png)",
    )
    (item,) = made_again(found)
    assert (item.prompt, item.parts) == ("(cat:1.2), dog:2 b", (Part(text="(cat:1.2), dog:2 b", weight=1.0),))
    assert item.a1111 and "  prompt_syntax: a1111\n" in found.manifest
    assert (item.negative, item.seed, item.scale, item.sampler, item.steps) == ("bad", 5, 7, "euler_a", 4)


def test_the_loras_of_a_picture_are_named() -> None:
    settings = "Steps: 4, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Clip skip: 2"
    found = extract([foreign("a.png", parameters=f"a cat <lora:fur:0.8>, <lora:ink:1>\n{settings}")])
    assert "prompt: 'a cat <lora:fur:0.8>, <lora:ink:1>'" in found.manifest
    assert "  clip_skip: 2\n" in found.manifest and "  prompt_syntax: a1111\n" in found.manifest
    assert "say under 'loras' where the files of these are: fur, ink" in found.notes
    with pytest.raises(manifest_read.ManifestError, match="lists no LoRA 'fur'"):
        made_again(found)


def test_pictures_in_either_syntax_are_told_apart() -> None:
    ours = picture(weighted("tabby cat:0.25 white duck:0.75 hybrid"), "ours.png")
    found = extract([ours, foreign("theirs.png", parameters=A1111)])
    items = {len(item.parts): item for item in made_again(found)}
    assert items[3].prompt == "tabby cat:0.25 white duck:0.75 hybrid" and not items[3].a1111
    assert items[1].a1111


def test_a_jpeg_of_automatic1111() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + f"{A1111}, Denoising strength: 0.6".encode("utf-16-be")
    Image.new("RGB", (8, 8)).save("a.jpg", exif=exif)
    found = extract([Path("a.jpg")])
    assert "strength: 0.6" in found.manifest
    assert "add 'init: ...'" in found.manifest
    assert made_again(found)[0].strength is None


def test_texts_in_comments_stay_in_their_lines() -> None:
    hostile = "a\u2028b\x85c\x1b[31md\re"
    path = foreign("new\nline: x.png", parameters=f"{A1111}, Clip skip: {hostile}, Model: {hostile}")
    found = extract([path, foreign("\u2028.png", parameters=f"{A1111}, ENSD: 1, Seed: 6")])
    comments, _, rest = found.manifest.partition("version: 1\n")
    Path("weights/a_b_c__31md_e").mkdir(parents=True)
    assert all(line.startswith("# ") for line in comments.splitlines())
    assert "\x1b" not in found.manifest + "".join(found.notes)
    assert "Clip skip: a?b?c?[31md?e (new?line: x.png)" in comments
    assert len(made_again(found)) == 2 and "Clip" not in rest


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: str) -> Path:
    """30000x30000 pixels, all of one colour, in a small file."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))
    return Path(path)


def wish(**changes: Any) -> str:
    return json.dumps({"item": make_item().to_dict() | changes, "model": MODEL.to_dict()})


BAD = {
    "missing": (lambda: Path("bad.png"), "can't be read: No such file or directory"),
    "text": (
        lambda: Path("bad.png").write_text("no picture") and Path("bad.png"),
        "is not a PNG, JPEG, WebP or AVIF picture",
    ),
    "plain": (lambda: foreign("bad.png"), "has no generation metadata"),
    "comfy": (lambda: foreign("bad.png", prompt="{}", workflow="{}"), "has no generation metadata"),
    "other": (lambda: foreign("bad.png", parameters="a cat"), "its text can't be read"),
    "steps": (lambda: foreign("bad.png", parameters=A1111.replace(": 4", ": 9999")), "steps: '9999' is not a whole"),
    "seed": (lambda: foreign("bad.png", parameters=A1111.replace(": 5", ": x")), "seed: 'x' is not a whole number"),
    "json": (lambda: foreign("bad.png", runner="{"), "holds a text of runner that can't be read"),
    "deep": (lambda: foreign("bad.png", runner="[" * 10**5), "holds a text of runner that can't be read"),
    "range": (lambda: foreign("bad.png", runner=wish(width=65)), "width: '65' is not a multiple of 64"),
    "kind": (lambda: foreign("bad.png", runner=wish(scale="much")), "scale: 'much' is not a number"),
    "later": (lambda: foreign("bad.png", runner=wish(tiling=True)), "unknown key 'tiling'"),
    "number": (lambda: foreign("bad.png", runner=wish(number=-1)), "'-1' is not a whole number"),
    "init": (lambda: foreign("bad.png", runner=wish(init="x", init_sha256="../x")), "init_sha256: expected"),
    "crop": (lambda: foreign("bad.png", runner=wish(init="x", init_sha256="0" * 64, crop=[1])), "should be four"),
    "strength": (lambda: foreign("bad.png", runner=wish(init="x", init_sha256="0" * 64)), "is not a number from 0"),
    "ztxt": (lambda: foreign("bad.png", parameters="x" * 10**8), "is broken: "),
    "bomb": (lambda: bomb("bad.png"), "has far too many pixels"),
    "folder": (lambda: Path("bad.png").mkdir() or Path("bad.png"), "holds no PNG, JPEG, WebP or AVIF pictures"),
    "pipe": (lambda: os.mkfifo("bad.png") or Path("bad.png"), "is not a file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_and_the_good_ones_are_extracted(kind: str) -> None:
    make, said = BAD[kind]
    good = picture(make_item(), "good.png")
    found = extract([make(), good])
    (problem,) = found.problems
    assert problem.startswith("bad.png: ") and said in problem and "\n" not in problem and len(problem) < 400
    assert found.manifest == extract([good]).manifest != ""
    assert extract([Path("bad.png")]).manifest == ""
