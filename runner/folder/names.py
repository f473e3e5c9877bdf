"""The names of a run folder: its own files, and where a picture goes, by names that are safe on every system."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from pathlib import PurePosixPath

from runner.item import Item

MANIFEST, LINES = "manifest.yaml", "manifest.jsonl"  # what was asked, as it was asked
RUN = "run.json"  # the resolved settings and the machine
RECORDS, TORN = "records.jsonl", "records.torn"  # the ledger, and what a crash left of a last line
LOCK, CLOCK = ".lock", ".clock"  # who holds the folder; in an object store, whose write tells the store's time
UNFINISHED = ".unfinished"  # as long as the gallery may be behind the records, and files half-written
IMAGES, INITS = "images", "inits"
GALLERY, GRID, LOG = "gallery.html", "grid.png", "runner.log"
PIECES, THUMBS = "gallery", "thumbs"  # the gallery's data, and its small pictures
WANTED = f"{PIECES}/wanted.json"  # what the manifest asks for, in its order

FOLDER_BYTES = 100
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE | re.DOTALL)
FORBIDDEN = frozenset('<>:"/\\|?*')
INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})  # they disguise a file name


def image_path(item: Item) -> PurePosixPath:
    """Where the picture goes within the run folder."""
    return PurePosixPath(image_name(item))


def image_name(item: Item) -> str:
    """The same as a text, which is made much faster."""
    return f"{IMAGES}/{folder_name(item.prompt)}/seed_{item.seed}_{item.number:05d}.{item.format}"


def grid_page(number: int) -> str:
    """The name of a page of the contact sheet, from 1."""
    return GRID if number == 1 else f"{GRID.removesuffix('.png')}-{number}.png"


def thumbnail_name(path: str) -> str:
    """Where the thumbnail of a picture lies."""
    return f"{THUMBS}/{path}.webp"


@functools.lru_cache(maxsize=1024)
def folder_name(prompt: str) -> str:
    """The prompt as a folder's name, as the original made it, but safe on every system and never too long."""
    words = "_".join(re.split("[: ]", unicodedata.normalize("NFC", prompt)))
    name = _safe(words)
    if RESERVED.fullmatch(name):
        name = f"_{name}"
    return name if len(name.encode()) <= FOLDER_BYTES else _shorten(name, prompt)


def job_name(text: str) -> str:
    """A text as a folder's name; a name that isn't the text itself ends in a mark of it, so that no two meet."""
    name = _safe(unicodedata.normalize("NFC", text))
    return name if name == text and len(name.encode()) <= FOLDER_BYTES else _shorten(name, text)


def _safe(text: str) -> str:
    name = "".join("_" if _is_unsafe(character) else character for character in text)
    return name.lstrip(".").rstrip(". ") or "_"


def _is_unsafe(character: str) -> bool:
    if character in FORBIDDEN or unicodedata.category(character) in INVISIBLE:
        return True
    return unicodedata.bidirectional(character) in TURNING


def _shorten(name: str, prompt: str) -> str:
    mark = "-" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return name.encode()[: FOLDER_BYTES - len(mark)].decode("utf-8", "ignore") + mark
