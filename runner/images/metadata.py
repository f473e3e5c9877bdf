"""How a picture was made, as text inside its file: PNG text and EXIF, written and read back."""

from __future__ import annotations

import json
import logging
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

log = logging.getLogger(__name__)

EXIF_LIMIT = 65533 - len(b"Exif\0\0")  # bytes; a JPEG segment's length has 16 bits
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
# The comment's tag and type: Pillow says BYTE, EXIF says UNDEFINED, and AUTOMATIC1111's program reads no other.
COMMENT_AS_BYTES, COMMENT_AS_UNDEFINED = (struct.pack(">HH", USER_COMMENT, kind) for kind in (1, 7))
UNICODE_COMMENT, ASCII_COMMENT, JIS_COMMENT = b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0"
COMMENT_CODES = (UNICODE_COMMENT, ASCII_COMMENT, JIS_COMMENT, b"Unicode\0", bytes(8))
CAMERA_MAKER, CAMERA_MODEL, SOFTWARE = 0x010F, 0x0110, 0x0131
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
KINDS = "PNG, JPEG, WebP or AVIF"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
MOST_TEXT = 1 << 24  # bytes of text that are read of a picture


class PictureError(ValueError):
    """A file that is no picture, or whose text about its making can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The item, the model and AUTOMATIC1111's text that a picture holds, each if it is there.

    `texts` are all that were found, by their names; `size` are the picture's width and height.
    """

    item: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    parameters: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)


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
        PictureError: it isn't a picture of a known kind, is broken, or its text isn't what `encode` writes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large pictures, which are not decoded, and about broken EXIF
        try:
            with Image.open(file, formats=FORMATS) as image:
                size, kind = image.size, image.format
                texts = {} if kind == "PNG" else _exif_texts(image.getexif())
                if kind == "PNG":
                    texts = _png_texts(file)
        except UnidentifiedImageError:
            raise PictureError(f"is not a {KINDS} picture, or a broken one") from None
        except Image.DecompressionBombError:
            raise PictureError("has far too many pixels for a picture of a model") from None
        except Exception as error:  # the parsers raise almost anything on garbage
            raise PictureError(f"is broken: {error}") from None
    item, model = _item_and_model(texts.get("runner"))
    return Metadata(item=item, model=model, parameters=texts.get("parameters"), texts=texts, size=size)


def _png_texts(file: BinaryIO) -> dict[str, str]:
    """The texts of a PNG file's chunks, those behind the image data as well, where editors put them."""
    texts: dict[str, str] = {}
    file.seek(8)
    read = 0
    while len(head := file.read(8)) == 8 and read < MOST_TEXT:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind == b"IEND":
            break
        if kind not in TEXT_CHUNKS or length > MOST_TEXT:
            file.seek(length + 4, 1)
            continue
        data = file.read(length)
        file.seek(4, 1)  # the checksum: a text with a wrong one is better than none
        read += length
        if kind == b"eXIf":
            exif = Image.Exif()
            exif.load(b"Exif\0\0" + data)
            texts = _exif_texts(exif) | texts
        elif found := _png_text(kind, data):
            texts[found[0]] = found[1]
    return texts


def _png_text(kind: bytes, data: bytes) -> tuple[str, str] | None:
    key, found, rest = data.partition(b"\0")
    if not found:
        return None
    if kind == b"zTXt":
        rest = _inflate(rest[1:])
    elif kind == b"iTXt":
        packed, _, rest = rest[:1] == b"\1", rest[:2], rest[2:]
        rest = rest.partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated key
        rest = _inflate(rest) if packed else rest
    return key.decode("latin-1"), _decode(rest)


def _inflate(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MOST_TEXT)


def _decode(data: bytes) -> str:
    """UTF-8, which many write where the format says Latin-1; a text that is none is Latin-1."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    """What programs write into EXIF: our item as description, a text as comment, ComfyUI's graph as a camera."""
    texts: dict[str, str] = {}
    description = _as_text(exif.get(IMAGE_DESCRIPTION))  # cameras and editors write theirs at the same place
    if description.startswith('{"item":'):
        texts["runner"] = description
    if software := _as_text(exif.get(SOFTWARE)):
        texts["Software"] = software
    for tag in (CAMERA_MAKER, CAMERA_MODEL, IMAGE_DESCRIPTION):
        name, colon, graph = _as_text(exif.get(tag)).partition(":")
        if colon and name.lower() in ("prompt", "workflow") and graph.lstrip().startswith("{"):
            texts[name.lower()] = graph
    comment = _comment(exif.get_ifd(EXIF_IFD).get(USER_COMMENT) or exif.get(USER_COMMENT), exif.endian or ">")
    if comment:
        texts["comment" if _is_document(comment) else "parameters"] = comment
    return texts


def _is_document(text: str) -> bool:
    """Whether a text is JSON, and no prompt that begins with a brace."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else _decode(value) if isinstance(value, bytes) else ""


def _comment(value: object, endian: str) -> str:
    """A user comment in whatever encoding a program wrote it: the eight bytes before it often say another."""
    if isinstance(value, str):
        return value.lstrip("\ufeff").rstrip("\0")
    if not isinstance(value, bytes):
        return ""
    prefix = next((prefix for prefix in COMMENT_CODES if value.startswith(prefix)), b"")
    data = value[len(prefix) :]
    if prefix == JIS_COMMENT:
        return data.decode("iso2022_jp", "replace").rstrip("\0")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace").lstrip("\ufeff").rstrip("\0")
    even, odd = data[::2].count(0), data[1::2].count(0)
    plain = _utf8(data.rstrip(b"\0"))
    if plain is not None and even + odd == data[len(data.rstrip(b"\0")) :].count(0) and _is_likely(plain, prefix):
        return plain.lstrip("\ufeff").rstrip("\0")
    if prefix == ASCII_COMMENT and even + odd < len(data) // 4:
        return _decode(data).lstrip("\ufeff").rstrip("\0")
    likely = ("utf-16-le", "utf-16-be") if odd > even or (odd == even and endian == "<") else ("utf-16-be", "utf-16-le")
    read = [data.decode(codec, "replace").lstrip("\ufeff").rstrip("\0") for codec in likely]
    # ASCII has a zero in every character, and says the order; without it the more likely text does.
    return read[0] if max(even, odd) > len(data) // 8 else min(read, key=_unlikely)


def _unlikely(text: str) -> int:
    """How many characters of a text are none that people write: the wrong order of bytes makes some."""
    return sum(
        unicodedata.category(char) in ("Cn", "Co", "Cc", "Cs") or char == "\ufffd"
        for char in text
        if char not in "\n\r\t"
    )


def _utf8(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_likely(text: str, prefix: bytes) -> bool:
    """Whether bytes that are UTF-8 are meant as such: UTF-16 without any zero would be a jumble of ASCII."""
    return prefix != UNICODE_COMMENT or "Steps:" in text or "{" in text


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
