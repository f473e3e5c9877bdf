import numpy as np
import pytest
from PIL import Image

from runner.errors import SettingError
from runner.web import fitting
from runner.web.fitting import CROP, OWN, PAD, STRETCH, fit


def ramp(width, height):
    """A picture whose red says the column."""
    levels = np.zeros((height, width, 3), np.uint8)
    levels[..., 0] = np.linspace(10, 250, width).astype(np.uint8)
    return Image.fromarray(levels)


def test_stretching_leaves_picture_and_size_as_they_are():
    fitted = fit(STRETCH, ramp(300, 200), None, 512, 512)
    assert (fitted.picture.size, fitted.crop, fitted.width, fitted.height) == ((300, 200), None, 512, 512)


@pytest.mark.parametrize(
    ("size", "to", "crop"),
    [
        ((300, 200), (512, 512), (50, 0, 250, 200)),
        ((200, 300), (512, 512), (0, 50, 200, 250)),
        ((300, 200), (192, 128), None),
        ((10_000, 1), (64, 64), (4999, 0, 5000, 1)),
    ],
)
def test_cropping_takes_the_middle(size, to, crop):
    assert fit(CROP, Image.new("RGB", size), None, *to).crop == crop


def test_padding_continues_the_edges_and_makes_them_anew_in_a_mask():
    fitted = fit(PAD, ramp(300, 200), Image.new("L", (300, 200)), 64, 64)
    assert fitted.picture.size == fitted.mask.size == (300, 300)
    levels, mask = np.asarray(fitted.picture), np.asarray(fitted.mask)
    assert (levels[:50] == levels[50]).all() and (levels[250:] == levels[249]).all()
    assert (mask[:50] == 255).all() and (mask[50:250] == 0).all() and (mask[250:] == 255).all()
    assert fit(PAD, ramp(128, 128), None, 64, 64).picture.size == (128, 128)


def test_padding_has_a_bound():
    with pytest.raises(SettingError, match="crop it first, or stretch it"):
        fit(PAD, Image.new("RGB", (9000, 64)), None, 64, 64)


@pytest.mark.parametrize(
    ("size", "made"),
    [((300, 200), (320, 192)), ((48, 30), (64, 64)), ((6000, 4000), (2048, 1344)), ((64, 2000), (64, 1984))],
)
def test_the_pictures_own_size_is_the_nearest_that_can_be_made(size, made):
    fitted = fit(OWN, Image.new("RGB", size), None, 512, 512)
    assert (fitted.width, fitted.height) == made
    left, top, right, bottom = fitted.crop or (0, 0, *size)
    assert (right - left) / (bottom - top) == pytest.approx(made[0] / made[1], rel=0.05)


def test_transparent_pictures_become_opaque():
    assert fitting.fit(CROP, Image.new("RGBA", (64, 64)), None, 64, 64).picture.getpixel((0, 0)) == (255, 255, 255)
