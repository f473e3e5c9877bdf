"""Pictures as files: where they go, what is written into them, and how it is read back.

Pixels come in as bytes of an array and go out as PNG or JPEG, with the item inside. The same pixels and the same item
give the same bytes: nothing here depends on the time. It does not make pixels, and it keeps no records.

    with Writer(folder) as writer:
        written = writer.submit(pixels, item, image_path(item)).result()
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import re
import struct
import threading
import unicodedata
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from runner.files import atomic_write, writing_to
from runner.spec import Item

# The samplers as AUTOMATIC1111 calls them, for the programs that read its text.
SAMPLER_NAMES = {
    "ddim": "DDIM",
    "plms": "PLMS",
    "heun": "Heun",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "lms": "LMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_karras": "DPM++ 2M SDE Karras",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_karras": "DPM++ SDE Karras",
    "unipc": "UniPC",
    "lcm": "LCM",
}
# Level 9 takes up to ten times as long as level 1 and saves a tenth of the bytes: pictures are noisy.
PNG_LEVEL = 1
JPEG_QUALITY = 95
EXIF_LIMIT = 65533 - len(b"Exif\0\0")  # bytes; a JPEG segment's length has 16 bits
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
# The comment's tag and type: Pillow says BYTE, EXIF says UNDEFINED, and AUTOMATIC1111's program reads no other.
COMMENT_AS_BYTES, COMMENT_AS_UNDEFINED = (struct.pack(">HH", USER_COMMENT, kind) for kind in (1, 7))
UNICODE_COMMENT, ASCII_COMMENT = b"UNICODE\0", b"ASCII\0\0\0"

FOLDER_BYTES = 100
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE | re.DOTALL)
FORBIDDEN = frozenset('<>:"/\\|?*')
INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})  # they disguise a file name
log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # [H, W, 3], RGB


class PictureError(ValueError):
    """A file that is no picture, or in which what it says of its making can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a picture says of its making, each if it is there: the item, the model, and AUTOMATIC1111's text."""

    item: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    parameters: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A picture that is in its place; `path` is within the run folder, as it stands in the record."""

    path: str
    sha256: str
    pixels_sha256: str
    bytes: int


def image_path(item: Item) -> PurePosixPath:
    """Where the picture goes within the run folder."""
    return PurePosixPath(image_name(item))


def image_name(item: Item) -> str:
    """The same as a text, which is made much faster."""
    return f"images/{folder_name(item.prompt)}/seed_{item.seed}_{item.number:05d}.{item.format}"


@functools.lru_cache(maxsize=1024)
def folder_name(prompt: str) -> str:
    """The prompt as a folder's name, as the original made it, but safe on every system and never too long."""
    words = "_".join(re.split("[: ]", unicodedata.normalize("NFC", prompt)))
    name = "".join("_" if _is_unsafe(character) else character for character in words).lstrip(".").rstrip(". ") or "_"
    if RESERVED.fullmatch(name):
        name = f"_{name}"
    return name if len(name.encode()) <= FOLDER_BYTES else _shorten(name, prompt)


def _is_unsafe(character: str) -> bool:
    if character in FORBIDDEN or unicodedata.category(character) in INVISIBLE:
        return True
    return unicodedata.bidirectional(character) in TURNING


def _shorten(name: str, prompt: str) -> str:
    mark = "-" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return name.encode()[: FOLDER_BYTES - len(mark)].decode("utf-8", "ignore") + mark


def pixels_hash(pixels: Pixels) -> str:
    """SHA-256 (hexadecimal) of the RGB bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def encode(pixels: Pixels, item: Item) -> bytes:
    """The file of a picture, with its item and what its model is inside."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are [H, W, 3] in uint8, not {list(pixels.shape)} in {pixels.dtype}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    parameters = parameters_text(item)
    wish = json.dumps({"item": item.to_dict(), "model": item.model.to_dict()})
    file = io.BytesIO()
    if item.format == "png":
        image.save(file, "PNG", compress_level=PNG_LEVEL, pnginfo=_png_text(parameters, wish))
    elif item.format == "jpg":
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4", exif=_exif(parameters, wish))
    else:
        raise ValueError(f"unknown format '{item.format}', known are: jpg, png")
    return file.getvalue()


def parameters_text(item: Item) -> str:
    """The text that AUTOMATIC1111's program writes into its pictures, and many programs read.

    Its last line is `key: value, ...`. Few of its readers know how to unquote a value, so none is quoted here.
    """
    settings = {
        "Steps": item.steps,
        "Sampler": SAMPLER_NAMES[item.sampler],
        "CFG scale": int(item.scale) if item.scale == int(item.scale) else item.scale,
        "Seed": item.seed,
        "Size": f"{item.width}x{item.height}",
        "Model": " ".join(re.sub(r'[,:"]', " ", item.model.name).split()),
    }
    if item.strength is not None:
        settings["Denoising strength"] = item.strength
    if item.eta:
        settings["Eta DDIM"] = item.eta
    negative = [f"Negative prompt: {item.negative}"] if item.negative else []
    return "\n".join([item.prompt, *negative, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def _png_text(parameters: str, wish: str) -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", parameters)
    info.add_text("runner", wish)
    return info


def _exif(parameters: str, wish: str) -> bytes:
    """The item matters more than the text; what doesn't fit a JPEG's 64 KiB is in the record all the same."""
    for description, comment in ((wish, parameters), (wish, None)):
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = description
        if comment is not None:
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE_COMMENT + comment.encode("utf-16-be")
        data = exif.tobytes().replace(COMMENT_AS_BYTES, COMMENT_AS_UNDEFINED, 1)
        if len(data) <= EXIF_LIMIT:
            return data
    log.warning("an item of %d bytes does not fit into a JPEG; it stands in the record only", len(wish))
    return b""


def read_metadata(path: Path) -> Metadata:
    """What a picture says of its making, which may be nothing. Nothing is executed, and no pixel is decoded.

    Raises:
        OSError: the file can't be read.
        PictureError: it isn't a PNG or JPEG picture, is broken, or its text isn't what `encode` writes.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bombs, which stay packed, and of broken EXIF
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


def decode(data: bytes, width: int, height: int) -> Pixels | None:
    """The pixels of a PNG or JPEG file; None where it isn't a whole picture of this size."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB")) if image.size == (width, height) else None
    except Exception as error:  # the parsers raise almost anything on garbage
        log.debug("no picture: %r", error)
        return None


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
        raise PictureError("holds a text of runner that can't be read; was it changed?") from None
    if not isinstance(item, dict) or not isinstance(model, dict):
        raise PictureError("holds a text of runner that is not an item and its model")
    return item, model


class Writer:
    """A few threads that encode, hash and write pictures while the next ones are made."""

    def __init__(self, folder: Path, *, threads: int = 3, waiting: int = 16) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        # Bounds the pictures in memory: who makes them faster than they are written has to wait.
        self._places = threading.BoundedSemaphore(threads + waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, pixels: Pixels, item: Item, path: PurePosixPath) -> Future[Written]:
        """Have a picture written to `path` in the folder; its pixels must stay as they are until then.

        Waits while too many are waiting.
        """
        self._places.acquire()
        try:
            future = self._pool.submit(self._write, pixels, item, path)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return future

    def _write(self, pixels: Pixels, item: Item, path: PurePosixPath) -> Written:
        data = encode(pixels, item)
        with writing_to(self.folder):
            self.folder.stat()  # one that has vanished must not come back as a folder of pictures without records
            atomic_write(self.folder / path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        return Written(path=str(path), sha256=sha256, pixels_sha256=pixels_hash(pixels), bytes=len(data))
