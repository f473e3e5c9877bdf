"""How a picture of any shape is brought to the size that is made: stretched, cropped, padded, or left as it is.

Cropping is left to the manifest's `crop`, so that the run folder keeps the whole picture. Padding continues the
picture's edges; in inpainting what is added is made anew.

    fitted = fit(CROP, picture, None, 512, 512)
    fitted.crop  # (left, top, right, bottom), the middle of the picture
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from runner.errors import SettingError
from runner.images.inits import MOST_PIXELS, Crop, flatten
from runner.keys import SIZE_STEP

CROP, PAD, STRETCH, OWN = "crop", "pad", "stretch", "size of the picture"
WAYS = (CROP, PAD, STRETCH, OWN)
LARGEST_SIZE = 2048  # pixels that the page offers along a side
WHITE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A picture in RGB with its mask, what is cut out of both, and the size that is made."""

    picture: Image.Image
    mask: Image.Image | None
    width: int
    height: int
    crop: Crop | None = None


def fit(way: str, picture: Image.Image, mask: Image.Image | None, width: int, height: int) -> Fitted:
    """The picture and its mask, of the same size, for pictures of `width` and `height`.

    Raises:
        SettingError: it would become too large.
    """
    flat = flatten(picture)
    if way == OWN:
        width, height = own_size(*flat.size)
    if way == PAD:
        left, top, right, bottom = margins(*flat.size, width, height)
        if left + top + right + bottom:
            return _padded(flat, mask, (left, top, right, bottom), (width, height))
    crop = centre(*flat.size, width, height) if way in (CROP, OWN) else None
    return Fitted(picture=flat, mask=mask, width=width, height=height, crop=crop)


def own_size(width: int, height: int) -> tuple[int, int]:
    """The nearest size that can be made, at most `LARGEST_SIZE` along a side."""
    share = min(1.0, LARGEST_SIZE / max(width, height))
    return _nearest(width * share), _nearest(height * share)


def _nearest(pixels: float) -> int:
    return max(SIZE_STEP, round(pixels / SIZE_STEP) * SIZE_STEP)


def centre(width: int, height: int, to_width: int, to_height: int) -> Crop | None:
    """The largest box in the middle of a picture with the shape of another size; None if that is all of it."""
    wide = min(width, max(1, round(height * to_width / to_height)))
    high = min(height, max(1, round(width * to_height / to_width)))
    left, top = (width - wide) // 2, (height - high) // 2
    return None if (wide, high) == (width, height) else (left, top, left + wide, top + high)


def margins(width: int, height: int, to_width: int, to_height: int) -> Crop:
    """The pixels that are missing left, above, right and below for the shape of another size."""
    wide = max(width, round(height * to_width / to_height))
    high = max(height, round(width * to_height / to_width))
    if wide * high > MOST_PIXELS:
        raise SettingError(f"fit: padded the picture would have {wide}x{high} pixels; crop it first, or stretch it")
    left, top = (wide - width) // 2, (high - height) // 2
    return left, top, wide - width - left, high - height - top


def _padded(flat: Image.Image, mask: Image.Image | None, added: Crop, size: tuple[int, int]) -> Fitted:
    left, top, right, bottom = added
    sides = ((top, bottom), (left, right))
    larger = Image.fromarray(np.pad(np.asarray(flat), (*sides, (0, 0)), mode="edge"))
    if mask is not None:
        mask = Image.fromarray(np.pad(np.asarray(mask), sides, constant_values=WHITE))
    return Fitted(picture=larger, mask=mask, width=size[0], height=size[1])
