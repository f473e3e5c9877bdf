"""How a picture was made, as text inside its file: PNG text and EXIF, written and read back."""

from __future__ import annotations

import logging
import struct
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

log = logging.getLogger(__name__)

EXIF_LIMIT = 65533 - len(b"Exif\0\0")  # bytes; a JPEG segment's length has 16 bits
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
# The comment's tag and type: Pillow says BYTE, EXIF says UNDEFINED, and AUTOMATIC1111's program reads no other.
COMMENT_AS_BYTES, COMMENT_AS_UNDEFINED = (struct.pack(">HH", USER_COMMENT, kind) for kind in (1, 7))
UNICODE_COMMENT, ASCII_COMMENT = b"UNICODE\0", b"ASCII\0\0\0"


class PictureError(ValueError):
    """A file that is no picture, or whose text about its making can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The item, the model and AUTOMATIC1111's text that a picture holds, each if it is there."""

    item: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    parameters: str | None = None


def png_text(parameters: str, wish: str) -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", parameters)
    info.add_text("runner", wish)
    return info


def exif_bytes(parameters: str, wish: str) -> bytes:
    """EXIF with the item and the text, or with the item alone if a JPEG's 64 KiB are too few; the record has both."""
    for description, comment in ((wish, parameters), (wish, None)):
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = description
        if comment is not None:
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE_COMMENT + comment.encode("utf-16-be")
        data = exif.tobytes().replace(COMMENT_AS_BYTES, COMMENT_AS_UNDEFINED, 1)
        if len(data) <= EXIF_LIMIT:
            return data
    log.warning("an item of %d bytes does not fit into a JPEG; only the record holds it", len(wish))
    return b""


def read_metadata(file: BinaryIO) -> Metadata:
    """How a picture was made, as far as its file says. Executes nothing and decodes no pixel.

    Raises:
        PictureError: it isn't a PNG or JPEG picture, is broken, or its text isn't what `encode` writes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large pictures, which are not decoded, and about broken EXIF
        try:
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                wish, parameters = _png_metadata(image) if image.format == "PNG" else _jpeg_metadata(image)
        except UnidentifiedImageError:
            raise PictureError("is not a PNG or JPEG picture, or a broken one") from None
        except Image.DecompressionBombError:
            raise PictureError("has far too many pixels for a picture of a model") from None
        except Exception as error:  # the parsers raise almost anything on garbage
            raise PictureError(f"is broken: {error}") from None
    item, model = _item_and_model(wish)
    return Metadata(item=item, model=model, parameters=parameters if isinstance(parameters, str) else None)


def _png_metadata(image: Image.Image) -> tuple[object, object]:
    return image.info.get("runner"), image.info.get("parameters")


def _jpeg_metadata(image: Image.Image) -> tuple[object, object]:
    exif = image.getexif()
    description = exif.get(IMAGE_DESCRIPTION)  # cameras and editors write theirs at the same place
    is_wish = isinstance(description, str) and description.startswith('{"item":')
    return description if is_wish else None, _comment(exif.get_ifd(EXIF_IFD).get(USER_COMMENT))


def _comment(value: object) -> str | None:
    if not isinstance(value, bytes):
        return None
    if value.startswith(UNICODE_COMMENT):
        return value[len(UNICODE_COMMENT) :].decode("utf-16-be", "replace")
    return value.removeprefix(ASCII_COMMENT).decode("ascii", "replace")


def _item_and_model(text: object) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    if not isinstance(text, str):
        return None, None
    try:
        wish = orjson.loads(text)
        item, model = wish["item"], wish["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise PictureError("holds a text of runner that can't be read; it was changed after it was written") from None
    if not isinstance(item, dict) or not isinstance(model, dict):
        raise PictureError("holds a text of runner that is not an item and its model")
    return item, model
