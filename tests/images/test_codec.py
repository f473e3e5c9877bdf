"""Pictures go to safe places, carry their item, and are the same bytes each time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from builders import MODEL, make_item
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from runner.images.codec import Pixels, decode, encode, pixels_hash
from runner.images.infotext import parameters_text
from runner.images.metadata import UNICODE_COMMENT, Metadata, PictureError, read_metadata
from runner.item import Item, Model, Part
from runner.sampler_names import SAMPLERS

HOSTILE = [
    "plain",
    "naïve café in Latin-1",
    "家 🏔️ ☃ — beyond Latin-1",
    "quotes \" ' and \\ and </script>",
    "two\nlines\tand a tab",
    "Steps: 20, Sampler: x",
    "",
    "x" * 4000,
]


KEPT: list[Image.Image] = []  # sd-parsers takes an image with the address of an earlier one for that one


def metadata_of(path: Path) -> Metadata:
    with path.open("rb") as file:
        return read_metadata(file)


def noise(height: int = 64, width: int = 48) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_file(pixels: Pixels, item: Item, format: str, model: Model = MODEL) -> bytes:
    return encode(pixels, item._replace(format=format, model=model))


def of_model(item: Item, name: str) -> Item:
    return item._replace(model=Model(name=name))


def hostile_item(prompt: str) -> Item:
    parts = (Part(text=prompt, weight=0.25), Part(text="duck", weight=0.75))
    return make_item(prompt=prompt, parts=parts, negative=prompt[::-1], axes=(("scale", 7.5), ("weights", [1, 2])))


def saved(folder: Path, item: Item, format: str) -> Path:
    path = folder / f"picture.{format}"
    path.write_bytes(as_file(noise(), item, format))
    return path


def test_the_parameters_are_what_automatic1111_writes() -> None:
    item = make_item(prompt="a cat", negative="blurry", seed=27, width=512, height=768, sampler="euler_a")
    last = "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 27, Size: 512x768, Model: sd15"
    assert parameters_text(of_model(item, "sd15")) == f"a cat\nNegative prompt: blurry\n{last}"
    img2img = make_item(prompt="a cat", scale=7.0, strength=0.75, eta=0.5)
    assert parameters_text(of_model(img2img, 'odd, "name": x\ny')) == (
        "a cat\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 27, Size: 64x64, Model: odd name x y, "
        "Denoising strength: 0.75, Eta DDIM: 0.5"
    )


@pytest.mark.parametrize("format", ["png", "jpg"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_program_reads_the_parameters(sampler: str, format: str) -> None:
    item = make_item(
        prompt="cat, sitting: oil\ntabby:0.25 家:0.75",
        negative="blurry, bad: 2\nugly",
        sampler=sampler,
        strength=0.5,
        eta=0.5,
        scale=3.5,
    )
    image = Image.open(io.BytesIO(as_file(noise(), item, format)))
    KEPT.append(image)
    read = ParserManager().parse(image)
    assert read is not None
    (found,) = read.samplers
    assert [prompt.value for prompt in found.prompts] == [item.prompt]
    assert [prompt.value for prompt in found.negative_prompts] == [item.negative]
    assert found.name == SAMPLERS[sampler].shown
    assert found.parameters == {"steps": "20", "cfg_scale": "3.5", "seed": "27"}
    assert found.model is not None and found.model.name == "emoji"
    assert read.metadata == {"Size": "64x64", "Denoising strength": "0.5", "Eta DDIM": "0.5"}


def test_the_comment_of_a_jpeg_has_the_type_that_exif_asks_for(tmp_path: Path) -> None:
    """Programs that read EXIF with piexif, AUTOMATIC1111's among them, see no comment of any other type."""
    data = saved(tmp_path, make_item(), "jpg").read_bytes()
    assert (
        struct.pack(">HHI", 0x9286, 7, len(UNICODE_COMMENT) + 2 * len(parameters_text(of_model(make_item(), "emoji"))))
        in data
    )


def test_every_sampler_has_a_name() -> None:
    assert len({sampler.shown for sampler in SAMPLERS.values()}) == len(SAMPLERS)


@pytest.mark.parametrize("format", ["png", "jpg"])
@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_picture_carries_its_item(tmp_path: Path, prompt: str, format: str) -> None:
    item = hostile_item(prompt)
    found = metadata_of(saved(tmp_path, item, format))
    assert found.item == item.to_dict() | {"format": format, "axes": {"scale": 7.5, "weights": [1, 2]}}
    assert found.model == MODEL.to_dict()
    written = parameters_text(of_model(item, "emoji")).lstrip("\ufeff")  # no text begins with a mark of its encoding
    # Latin-1 that is UTF-8 as well is read as that: most who write it there mean it.
    assert found.parameters == written or (format == "png" and found.parameters.encode() == written.encode("latin-1"))


@given(prompt=st.text(), format=st.sampled_from(["png", "jpg"]))
@example(prompt="{red|blue} cat", format="jpg")
def test_any_prompt_comes_back(tmp_path_factory: pytest.TempPathFactory, prompt: str, format: str) -> None:
    item = make_item(prompt=prompt)
    path = tmp_path_factory.getbasetemp() / f"any.{format}"
    path.write_bytes(as_file(noise(8, 8), item, format))
    found = metadata_of(path)
    assert found.item is not None and found.item["prompt"] == prompt
    written = parameters_text(of_model(item, "emoji")).lstrip("\ufeff")  # no text begins with a mark of its encoding
    # Latin-1 that is UTF-8 as well is read as that: most who write it there mean it.
    assert found.parameters == written or (format == "png" and found.parameters.encode() == written.encode("latin-1"))


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_the_same_item_gives_the_same_bytes(format: str) -> None:
    item = hostile_item("家 🏔️")
    assert as_file(noise(), item, format) == as_file(noise().copy(), item, format)
    assert as_file(noise(), item, format) != as_file(noise(), item, format, Model(name="other"))


def test_a_png_has_the_pixels_and_a_jpeg_nearly() -> None:
    item, smooth = make_item(), np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    png = Image.open(io.BytesIO(as_file(noise(), item, "png")))
    jpeg = Image.open(io.BytesIO(as_file(smooth, item, "jpg")))
    assert np.array_equal(np.asarray(png), noise())
    assert pixels_hash(np.asarray(png)) == pixels_hash(noise())
    assert np.abs(np.asarray(jpeg).astype(int) - smooth).max() <= 4
    assert [component[1:3] for component in jpeg.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_the_hash_is_of_the_bytes_and_not_of_their_layout() -> None:
    turned = np.asfortranarray(noise())
    assert pixels_hash(turned) == hashlib.sha256(noise().tobytes()).hexdigest()
    assert pixels_hash(noise()[::-1]) != pixels_hash(noise())


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (1, 4, 4, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels are"):
        as_file(np.zeros(shape, dtype=np.uint8), make_item(), "png")


def test_other_kinds_of_numbers_and_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        as_file(np.zeros((4, 4, 3), dtype=np.float32), make_item(), "png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown format 'gif'"):
        as_file(noise(), make_item(), "gif")


@pytest.mark.parametrize(("letters", "kept"), [(12_000, True), (40_000, False)])
def test_a_prompt_too_long_for_a_jpeg_costs_metadata_and_not_the_picture(
    tmp_path: Path, letters: int, kept: bool
) -> None:
    item = make_item(prompt="x" * letters, parts=(Part(text="y", weight=1.0),), negative="z" * letters)
    path = saved(tmp_path, item, "jpg")
    found = metadata_of(path)
    with Image.open(path) as image:
        assert image.size == (48, 64)
    assert (found.item, found.model) == (
        (item.to_dict() | {"format": "jpg"}, MODEL.to_dict()) if kept else (None, None)
    )
    assert found.parameters is None


def test_garbage_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    for data in (b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM\0*", bytes(5000)):
        path.write_bytes(data)
        with pytest.raises(PictureError, match=r"^is (not a PNG, JPEG, WebP or AVIF picture|broken)"):
            metadata_of(path)
    with pytest.raises(FileNotFoundError):
        metadata_of(tmp_path / "nowhere")


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_a_picture_cut_or_changed_at_any_place_is_read_or_refused(tmp_path: Path, format: str) -> None:
    data = as_file(noise(8, 8), make_item(), format)
    path = tmp_path / "broken"
    random = np.random.default_rng(0)
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        for broken in (data[:place], bytes(changed)):
            path.write_bytes(broken)
            with contextlib.suppress(PictureError):
                assert isinstance(metadata_of(path), Metadata)


NO_WISHES = ('{"item":', '{"item":{}}', '{"item":[],"model":{}}', '{"item":{},"model":"x"}', '{"item":' + "[" * 4000)


@pytest.mark.parametrize("text", NO_WISHES)
def test_a_damaged_item_is_not_overlooked(tmp_path: Path, text: str) -> None:
    exif, info = Image.Exif(), PngInfo()
    exif[0x010E] = text
    info.add_text("runner", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    for name in ("a.jpg", "a.png"):
        with pytest.raises(PictureError, match="holds a text of runner that"):
            metadata_of(tmp_path / name)


def test_pictures_of_others_say_nothing(tmp_path: Path) -> None:
    info = Image.Exif()
    info[0x010E] = "OLYMPUS DIGITAL CAMERA"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=info)
    assert metadata_of(tmp_path / "a.jpg") == Metadata(size=(4, 4))
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert metadata_of(tmp_path / "plain.png") == Metadata(size=(4, 4))


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_a_file_is_decoded_or_nothing_is(format):
    pixels = np.random.default_rng(3).integers(0, 256, (64, 128, 3), np.uint8)
    data = as_file(pixels, make_item(), format)
    decoded = decode(data, 128, 64)
    assert decoded.shape == pixels.shape
    assert (decoded == pixels).all() == (format == "png")
    assert decode(data, 64, 128) is None
    assert decode(data[:-200], 128, 64) is None
    assert decode(b"", 128, 64) is None
