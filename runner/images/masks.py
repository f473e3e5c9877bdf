"""The masks of inpainting: what is white in one is made anew, all else of the init picture is kept.

A mask goes through the same crop and resizing as its init picture. It is 256 levels, [height, width], 255 for white.

    mask = load(path, sha256, crop, 512, 512)
    new = cells(mask, 8)  # which latents are made anew
    finished = paste(made, init, mask, blur=4)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from runner.files import sha256_of
from runner.images import inits
from runner.images.inits import Crop, Init, Pixels

Levels = np.ndarray[Any, np.dtype[np.uint8]]
Cells = np.ndarray[Any, np.dtype[np.bool_]]

HALF = 128  # of 255: the least level that is at least half white


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask(Init):
    """A mask that can be read; `white` says whether anything in it is to be made anew."""

    white: bool


@functools.lru_cache(maxsize=4096)
def examine(path: Path) -> Mask:
    """Decodes a mask once, so that a broken one is found before anything is loaded.

    Raises:
        InitError: it is missing, broken, cut off, enormous, or no picture.
    """
    with inits.upright(path) as picture:
        white = bool((np.asarray(_whiteness(picture)) >= HALF).any())
        width, height = picture.size
    return Mask(path=path, sha256=sha256_of(path), width=width, height=height, white=white)


def unfit(mask: Init, init: Init | None) -> str:
    """Why a mask can't be laid over a picture; nothing where it can."""
    if init is None:
        return "'mask' needs an 'init', the picture that it is laid over"
    if (mask.width, mask.height) == (init.width, init.height):
        return ""
    sizes = f"{mask.width}x{mask.height} pixels, and {init.path} has {init.width}x{init.height}"
    return f"{mask.path}: the mask has {sizes}; make it as large as the picture"


def load(path: Path, sha256: str, crop: Crop | None, width: int, height: int) -> Levels:
    """The mask cropped and resized, uint8 [height, width]: luminance times opacity.

    Raises:
        InitError: it can't be read any more, or its bytes have changed.
    """
    with inits.upright(path, sha256) as picture:
        levels = _whiteness(picture.crop(crop) if crop else picture)
        # Not by Lanczos, which would leave faint echoes of an edge in what is to be kept.
        return np.asarray(levels.resize((width, height), Image.Resampling.BILINEAR))


def cells(mask: Levels, factor: int) -> Cells:
    """Which latents are made anew, [height / factor, width / factor]: those with a pixel of at least half white."""
    height, width = mask.shape
    squares: Cells = (mask >= HALF).reshape(height // factor, factor, width // factor, factor)
    return np.asarray(squares.any(axis=(1, 3)))


def paste(made: Pixels, init: Pixels, mask: Levels, blur: int) -> Pixels:
    """What was made, [height, width, 3], within the init picture; the mask's edge is a Gaussian of `blur` pixels.

    Where the blurred mask is black the init picture's bytes stay, where it is white those that were made.
    """
    soft = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(blur)) if blur else mask
    share = np.asarray(soft).astype(np.uint16)[..., None]  # of 255
    mixed = made * share + init * (255 - share)  # 65,025 at most
    return ((mixed + 127) // 255).astype(np.uint8)  # no quotient by an odd number is half-way


def _whiteness(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture if picture.mode == "L" else picture.convert("RGB").convert("L")
    rgba = picture.convert("RGBA")
    return ImageChops.multiply(rgba.convert("RGB").convert("L"), rgba.getchannel("A"))
