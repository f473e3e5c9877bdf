import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.images.inits import InitError, examine, load


@pytest.fixture
def picture(tmp_path):
    """A picture of 150x100 pixels whose left half is red and whose right half is blue."""
    pixels = np.zeros((100, 150, 3), np.uint8)
    pixels[:, :75, 0] = pixels[:, 75:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_picture_is_looked_at(picture):
    init = examine(picture)
    assert (init.width, init.height) == (150, 100)
    assert init.own_size(None) == (128, 64)
    assert init.own_size((0, 0, 64, 100)) == (64, 64)
    assert len(init.sha256) == 64


def test_it_is_cut_and_resized(picture):
    init = examine(picture)
    whole = load(picture, init.sha256, None, 64, 128)
    assert whole.shape == (128, 64, 3)
    assert whole[64, 5].tolist() == [255, 0, 0]
    assert whole[64, 60].tolist() == [0, 0, 255]
    assert (load(picture, init.sha256, (80, 10, 144, 74), 64, 64) == [0, 0, 255]).all()


def test_it_is_turned_upright(tmp_path):
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: the left edge belongs to the top
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    init = examine(tmp_path / "a.jpg")
    assert (init.width, init.height) == (64, 128)
    upright = load(tmp_path / "a.jpg", init.sha256, None, 64, 128)
    assert upright[:50].max() < 30
    assert upright[-50:].min() > 225


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_every_kind_of_pixels_becomes_rgb(tmp_path, mode):
    Image.new("L", (70, 70), 255).convert("RGBA" if mode == "P" else mode.replace("I;16", "I")).save(
        tmp_path / "a.tiff"
    )
    init = examine(tmp_path / "a.tiff")
    assert load(tmp_path / "a.tiff", init.sha256, None, 64, 64).shape == (64, 64, 3)


def test_transparent_places_become_white(tmp_path):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "a.png")
    init = examine(tmp_path / "a.png")
    assert (load(tmp_path / "a.png", init.sha256, None, 64, 64) == 255).all()


def enormous_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def half_a_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (enormous_png(), "too many pixels"),
        (half_a_jpeg(), "broken or cut off"),
        (b"GIF89a", "not a picture of a known kind"),
        (b"no picture", "not a picture of a known kind"),
        (b"", "not a picture of a known kind"),
        (b"%!PS-Adobe-3.0\n", "not a picture of a known kind"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, data, words):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(InitError, match=words):
        examine(path)


def test_a_missing_picture_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InitError, match="there is no such file"):
        examine(tmp_path / "none.png")
    with pytest.raises(InitError, match="can't be read"):
        examine(tmp_path)


@pytest.mark.parametrize("crop", [(0, 0, 151, 100), (10, 10, 10, 90), (90, 0, 10, 90), (0, 90, 150, 101)])
def test_a_crop_that_leaves_the_picture_is_refused(picture, crop):
    with pytest.raises(InitError, match="isn't within the picture's 150x100 pixels"):
        examine(picture).own_size(crop)


def test_too_few_pixels_are_refused(picture):
    with pytest.raises(InitError, match="too few"):
        examine(picture).own_size((0, 0, 63, 100))


def test_a_picture_that_was_changed_is_refused(picture):
    sha256 = examine(picture).sha256
    Image.new("RGB", (64, 64)).save(picture)
    with pytest.raises(InitError, match="was changed"):
        load(picture, sha256, None, 64, 64)


def test_a_picture_is_looked_at_once(picture):
    examine(Path(picture))
    Path(picture).write_bytes(b"no picture any more")
    assert examine(Path(picture)).width == 150


RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))


@pytest.mark.parametrize(
    ("values", "name"),
    [(RAMP.astype(np.uint16) * 257, "a.png"), (RAMP.astype(np.uint16) * 257, "a.tif"),
     (RAMP / np.float32(255), "a.tif"),
     (RAMP.astype(np.float32), "a.tif"), (RAMP.astype(np.float32) * 257, "a.tif"), (RAMP.astype(np.int32), "a.tif"),
     (RAMP.astype(">u2") * 257, "a.tif")],
)  # fmt: skip
def test_more_than_eight_bits_keep_their_brightness(tmp_path, values, name):
    Image.fromarray(values).save(tmp_path / name)
    found = examine(tmp_path / name)
    pixels = load(tmp_path / name, found.sha256, None, 256, 64)
    assert np.abs(pixels.astype(int) - RAMP[..., None]).max() <= 1


@pytest.mark.parametrize("value", [-1.0, 1e9, np.nan, np.inf])
def test_numbers_that_are_no_brightness_are_refused(tmp_path, value):
    values = np.full((64, 64), 0.5, np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(InitError, match="no brightness"):
        examine(tmp_path / "a.tif")
