"""From pixels to the bytes of a PNG or JPEG file, with the item inside, and back.

The same pixels and the same item give the same bytes: nothing depends on the time. `metadata` reads what is inside.

    data = encode(pixels, item)
    decode(data, item.width, item.height)
"""

from __future__ import annotations

import hashlib
import io
import json
import logging

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.images.infotext import parameters_text
from runner.images.metadata import exif_bytes, png_text
from runner.item import Item

# Level 9 takes up to ten times as long as level 1 and saves a tenth of the bytes: pictures are noisy.
PNG_LEVEL = 1
JPEG_QUALITY = 95
THUMBNAIL = 256  # pixels of the longer side; a picture up to it needs none
THUMBNAIL_QUALITY, THUMBNAIL_EFFORT = 82, 2
MOST_PIXELS = 1 << 26  # of a picture that a thumbnail is made of
log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # [H, W, 3], RGB


def pixels_hash(pixels: Pixels) -> str:
    """SHA-256 (hexadecimal) of the RGB bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def encode(pixels: Pixels, item: Item) -> bytes:
    """The bytes of a picture's file, from uint8 [H, W, 3]; its item and its model are inside."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are [H, W, 3] in uint8, not {list(pixels.shape)} in {pixels.dtype}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    parameters = parameters_text(item)
    wish = json.dumps({"item": item.to_dict(), "model": item.model.to_dict()})
    file = io.BytesIO()
    if item.format == "png":
        image.save(file, "PNG", compress_level=PNG_LEVEL, pnginfo=png_text(parameters, wish))
    elif item.format == "jpg":
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4", exif=exif_bytes(parameters, wish))
    else:
        raise ValueError(f"unknown format '{item.format}', known are: jpg, png")
    return file.getvalue()


def thumbnail(picture: Image.Image) -> bytes | None:
    """The bytes of a small WebP file of a picture; None where that is small enough itself, or too large to be read."""
    if max(picture.size) <= THUMBNAIL or picture.width * picture.height > MOST_PIXELS:
        return None
    picture.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # of a JPEG no more is decoded than is needed
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=THUMBNAIL_QUALITY, method=THUMBNAIL_EFFORT)
    return file.getvalue()


def decode(data: bytes, width: int, height: int) -> Pixels | None:
    """The pixels of a PNG or JPEG file, uint8 [H, W, 3]; None if it isn't a whole picture of this size."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB")) if image.size == (width, height) else None
    except Exception as error:  # the parsers raise almost anything on garbage
        log.debug("no picture: %r", error)
        return None
