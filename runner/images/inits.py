"""The pictures that img2img begins with: examined before anything is loaded, later cropped and resized for an item.

A picture is turned upright by its EXIF first, so crops and sizes refer to the picture as people see it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from runner.files import sha256_of
from runner.keys import SIZE_STEP

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Crop = tuple[int, int, int, int]  # left, top, right, bottom

MOST_PIXELS = 1 << 26  # which take at most half a GiB
STRIP = 512  # rows that are made opaque at once
WIDE_WHITES = (1, 255, 65535)  # what white may be in numbers of more than a byte
READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class InitError(ValueError):
    """A picture that can't be used, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """A picture that can be read: the SHA-256 of its file, and its size in pixels, upright.

    `label` is what it is called on an axis, where the name of its file is not enough.
    """

    path: Path
    sha256: str
    width: int
    height: int
    label: str = field(default="", compare=False)

    def cut_size(self, crop: Crop | None) -> tuple[int, int]:
        """Width and height of the picture, or of its crop.

        Raises:
            InitError: the crop leaves the picture.
        """
        if not crop:
            return self.width, self.height
        left, top, right, bottom = crop
        if not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            raise InitError(f"the crop {list(crop)} isn't within the picture's {self.width}x{self.height} pixels")
        return right - left, bottom - top

    def own_size(self, crop: Crop | None) -> tuple[int, int]:
        """Width and height of the picture, or of its crop, rounded down to multiples of 64 pixels.

        Raises:
            InitError: the crop leaves the picture, or too little is left.
        """
        width, height = self.cut_size(crop)
        if min(width, height) < SIZE_STEP:
            raise InitError(
                f"{width}x{height} pixels are too few; {SIZE_STEP}x{SIZE_STEP} are the least, or give width and height"
            )
        return width - width % SIZE_STEP, height - height % SIZE_STEP


@functools.lru_cache(maxsize=4096)
def examine(path: Path) -> Init:
    """Decodes a picture once, so that a broken one is found before anything is loaded.

    Raises:
        InitError: it is missing, broken, cut off, enormous, or no picture.
    """
    with upright(path) as picture:
        width, height = picture.size
    return Init(path=path, sha256=sha256_of(path), width=width, height=height)


def load(path: Path, sha256: str, crop: Crop | None, width: int, height: int) -> Pixels:
    """The picture cropped and resized, uint8 [height, width, 3]; transparent pixels become white.

    Raises:
        InitError: it can't be read any more, or its bytes have changed.
    """
    with upright(path, sha256) as picture:
        cut = flatten(picture.crop(crop) if crop else picture)
        return np.asarray(cut.resize((width, height), Image.Resampling.LANCZOS))


@contextmanager
def upright(path: Path, sha256: str = "") -> Iterator[Image.Image]:
    """The decoded picture, turned upright by its EXIF, in 256 levels; `sha256` is what its file should have.

    Raises:
        InitError: it can't be used, or its bytes have changed.
    """
    with _readable(path) as picture:
        if sha256 and sha256_of(path) != sha256:
            raise InitError(f"{path}: was changed since the item was made")
        ImageOps.exif_transpose(picture, in_place=True)
        _check_values(path, picture)
        yield _in_bytes(picture)


def flatten(picture: Image.Image) -> Image.Image:
    """The picture in RGB; transparent pixels become white."""
    if not picture.has_transparency_data:
        return _in_bytes(picture).convert("RGB")
    opaque = Image.new("RGB", picture.size)
    for top in range(0, picture.height, STRIP):
        box = (0, top, picture.width, min(top + STRIP, picture.height))
        rgba = picture.crop(box).convert("RGBA")
        opaque.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba), box[:2])
    return opaque


def _is_wide(picture: Image.Image) -> bool:
    """Whether a pixel is one number of more than a byte: 16 or 32 bits, or a fraction."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _check_values(path: Path, picture: Image.Image) -> None:
    if _is_wide(picture):
        values = np.asarray(picture)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > WIDE_WHITES[-1]:
            raise InitError(f"{path}: has numbers that are no brightness; save it with 8 or 16 bits a channel")


def _in_bytes(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits or of fractions in 256 levels; others as they are. Pillow would cut the levels off.

    White is 65535 with 16 bits. In wider numbers it is the first of 1, 255 and 65535 that none exceeds.
    """
    if not _is_wide(picture):
        return picture
    values = np.asarray(picture)
    white = WIDE_WHITES[-1] if picture.mode.startswith("I;16") else next(w for w in WIDE_WHITES if values.max() <= w)
    if picture.mode == "I" and picture.format == "PNG":
        white = WIDE_WHITES[-1]
    return Image.fromarray((values.astype(np.float32) * (255 / white) + 0.5).astype(np.uint8))


@contextmanager
def _readable(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=READABLE) as picture:
                width, height = picture.size
                if width * height > MOST_PIXELS:
                    raise InitError(f"{path}: {width}x{height} pixels are too many; {MOST_PIXELS:,} are the most")
                picture.load()
                yield picture
    except InitError:
        raise
    except FileNotFoundError:
        raise InitError(f"{path}: there is no such file") from None
    except Image.DecompressionBombError:
        raise InitError(f"{path}: has too many pixels; {MOST_PIXELS:,} are the most") from None
    except UnidentifiedImageError:
        raise InitError(f"{path}: is not a picture of a known kind ({', '.join(READABLE)})") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise InitError(f"{path}: can't be read, it is broken or cut off ({error})") from None
