"""Masks: how white they are, which latents they free, and what they leave of the init picture."""

import numpy as np
import pytest
from PIL import Image

from runner.images import inits, masks
from runner.images.inits import InitError, examine
from runner.images.masks import cells, load, paste


def save(path, levels, mode="L"):
    Image.fromarray(np.asarray(levels, np.uint8), mode).save(path)
    return path


def whole(path, size=(16, 16)):
    return load(path, masks.examine(path).sha256, None, *size)


def test_a_mask_is_its_luminance_and_transparent_pixels_are_black(tmp_path):
    colours = np.zeros((16, 16, 4), np.uint8)
    colours[:] = (255, 255, 255, 255)
    colours[0] = (255, 0, 0, 255)
    colours[1] = (255, 255, 255, 0)
    colours[2] = (255, 255, 255, 128)
    found = whole(save(tmp_path / "m.png", colours, "RGBA"))
    assert [found[row, 0] for row in range(4)] == [76, 0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "I;16"])
def test_a_mask_may_be_of_any_kind(tmp_path, mode):
    levels = np.zeros((16, 16), np.uint8)
    levels[:, 8:] = 255
    plain = Image.fromarray(levels)
    made = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else plain.convert(mode)
    path = tmp_path / ("m.tiff" if mode == "CMYK" else "m.png")
    made.save(path)
    assert np.array_equal(whole(path), levels)


def test_a_mask_is_turned_upright_and_cut_like_its_picture(tmp_path):
    levels = np.zeros((32, 64), np.uint8)
    levels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(levels).save(tmp_path / "m.png", exif=exif)
    found = masks.examine(tmp_path / "m.png")
    assert (found.width, found.height, found.white) == (32, 64, True)
    cut = load(tmp_path / "m.png", found.sha256, (16, 0, 32, 16), 32, 32)
    assert (cut == 255).all()


def test_whether_a_mask_has_anything_white(tmp_path):
    levels = np.zeros((16, 16), np.uint8)
    levels[3, 3] = 127
    assert not masks.examine(save(tmp_path / "black.png", levels)).white
    levels[3, 3] = 128
    assert masks.examine(save(tmp_path / "grey.png", levels)).white


def test_a_resized_mask_has_no_echoes_of_its_edge(tmp_path):
    levels = np.zeros((96, 96), np.uint8)
    levels[:, 48:] = 255
    found = whole(save(tmp_path / "m.png", levels), (64, 64))
    assert (found[:, :31] == 0).all() and (found[:, 33:] == 255).all()


def test_a_latent_is_made_anew_where_any_of_its_pixels_is_half_white():
    mask = np.full((64, 128), 127, np.uint8)
    mask[8, 16] = 128
    mask[63, 127] = 255
    assert np.argwhere(cells(mask, 8)).tolist() == [[1, 2], [7, 15]]


def test_what_is_kept_is_the_init_picture_byte_by_byte():
    generator = np.random.default_rng(0)
    made, init = (generator.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    sharp = paste(made, init, mask, 0)
    assert np.array_equal(sharp[mask == 255], made[mask == 255])
    assert np.array_equal(sharp[mask == 0], init[mask == 0])
    soft = paste(made, init, mask, 2)
    assert np.array_equal(soft[:8], init[:8]) and np.array_equal(soft[28:36, 28:36], made[28:36, 28:36])
    assert not np.array_equal(soft, sharp)


def test_the_mixture_is_rounded():
    made, init = np.full((1, 256, 3), 200, np.uint8), np.full((1, 256, 3), 13, np.uint8)
    shares = np.arange(256, dtype=np.uint8)[None]
    wanted = np.rint(shares / 255 * 200 + (1 - shares / 255) * 13)
    assert np.array_equal(paste(made, init, shares, 0)[..., 0], wanted)


def test_what_can_not_be_used_is_named(tmp_path):
    (tmp_path / "m.png").write_text("x")
    with pytest.raises(InitError, match="not a picture"):
        masks.examine(tmp_path / "m.png")
    path = save(tmp_path / "good.png", np.zeros((16, 16)))
    with pytest.raises(InitError, match="was changed"):
        load(path, "0" * 64, None, 16, 16)


def test_only_a_mask_of_the_pictures_size_fits(tmp_path):
    mask, other = (examine(save(tmp_path / f"{n}.png", np.zeros((16, n)))) for n in (16, 32))
    assert masks.unfit(mask, inits.examine(mask.path)) == ""
    assert "the mask has 16x16 pixels" in masks.unfit(mask, other)
    assert "needs an 'init'" in masks.unfit(mask, None)
