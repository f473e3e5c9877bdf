"""Fonts for texts in any script: Pillow's own letters first, then whatever font of this machine has a character.

Which characters a font has is asked of the font itself: it draws one that it lacks as the one that no font has. Fonts
are opened when a text needs them, so plain texts look the same on every machine.

    fonts = Fonts(system_fonts())
    face = fonts.face_of("猫")
"""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

SUFFIXES = frozenset({".ttf", ".ttc", ".otf", ".otc"})
# The plainest of each system first; scripts that these lack, and then all others, the regular ones first.
PREFERRED = (
    "notosans-regular", "dejavusans", "segoeui", "helvetica", "arial", "liberationsans-regular",
    "notosanscjk-regular", "notosanscjk-vf", "notosanssc-regular", "sourcehansans", "pingfang", "hiragino", "msyh",
    "meiryo", "yugothm", "malgun", "wqy-microhei", "wqy-zenhei", "droidsansfallback", "arial unicode", "arialuni",
    "notosansarabic-regular", "notonaskharabic-regular", "geezapro", "notosanshebrew-regular",
)  # fmt: skip
EMOJI = ("color", "seguiemj", "apple", "")  # of fonts with "emoji" in their names, the coloured ones first
FULL_OF_BOXES = ("lastresort", "adobeblank", "tofu")  # they claim to have every character
MOST_FILES = 1000
PROBED = 16  # pixels
STRIKES = (109, 160, 136, 128, 96, 64, 32, 16)  # pixels; a font of bitmaps has no other sizes
NO_CHARACTER = "\uffff"
JOINERS = frozenset("\u200c\u200d\ufe0e\ufe0f")
FIRST_PICTOGRAM = "\U0001f000"


class Face:
    """A font file at any size; of bitmaps the size that it has."""

    def __init__(self, path: Path | None, layout: ImageFont.Layout | None = None) -> None:
        self._path, self._layout = path, layout
        self._fonts: dict[int, tuple[ImageFont.FreeTypeFont, float]] = {}
        self._characters: dict[str, bool] = {}
        self._lacking: tuple[float, bytes] | None = None

    @property
    def works(self) -> bool:
        """Whether this can be opened."""
        try:
            self.at(PROBED)
        except OSError:
            return False
        return True

    @property
    def in_one_size(self) -> bool:
        """Whether this is a font of bitmaps."""
        return self.at(PROBED)[1] != 1

    def at(self, size: int) -> tuple[ImageFont.FreeTypeFont, float]:
        """The font, and by what its pixels are multiplied to have the size. Raises OSError: it can't be read."""
        if size not in self._fonts:
            self._fonts[size] = self._open(size)
        return self._fonts[size]

    def has(self, text: str) -> bool:
        """Whether every character of a text can be seen in this font."""
        return all(self._has(character) for character in text if character not in JOINERS)

    def _open(self, size: int) -> tuple[ImageFont.FreeTypeFont, float]:
        if self._path is None:
            font = ImageFont.load_default(size)
            if not isinstance(font, ImageFont.FreeTypeFont):
                raise OSError("Pillow was built without FreeType")
            return font, 1.0
        try:
            return ImageFont.truetype(self._path, size, layout_engine=self._layout), 1.0
        except OSError:
            for strike in STRIKES:
                try:
                    return ImageFont.truetype(self._path, strike, layout_engine=self._layout), size / strike
                except OSError:
                    continue
            raise

    def _has(self, character: str) -> bool:
        if character not in self._characters:
            if self._lacking is None:
                self._lacking = self._drawn(NO_CHARACTER)
            drawn = self._drawn(character)
            # A font whose emoji have a form that isn't drawn here has them all, and all are blank.
            seen = drawn is not None and (character.isspace() or any(drawn[1]))
            self._characters[character] = seen and drawn != self._lacking
        return self._characters[character]

    def _drawn(self, character: str) -> tuple[float, bytes] | None:
        """How wide it is, and what is seen of it."""
        font, factor = self.at(PROBED)
        side = 2 * math.ceil(PROBED / factor)
        image = Image.new("RGBA", (side, side))
        try:
            ImageDraw.Draw(image).text((side // 4, side // 4), character, "#000", font, embedded_color=True)
            return font.getlength(character), image.getchannel("A").tobytes()
        except (OSError, ValueError):  # a broken glyph
            return None


class Fonts:
    """Pillow's own font and these files, in their order; fonts of emoji are for emoji, and where no other will do.

    `shapes` says whether Pillow joins and turns letters; None is what it can.
    """

    def __init__(self, files: Iterable[Path] = (), *, shapes: bool | None = None) -> None:
        self.shapes = bool(features.check("raqm")) if shapes is None else shapes
        self._layout = ImageFont.Layout.RAQM if self.shapes else ImageFont.Layout.BASIC
        self._own = Face(None)
        self._files = iter(files)
        self._opened: list[tuple[Face, bool]] = []
        self._found: dict[str, Face | None] = {}

    @property
    def own(self) -> Face:
        return self._own

    def face_of(self, text: str) -> Face | None:
        """The first font that has every character of a text; None where there is none."""
        if text not in self._found:
            self._found[text] = self._find(text)
        return self._found[text]

    def _find(self, text: str) -> Face | None:
        pictogram = "\ufe0f" in text or any(character >= FIRST_PICTOGRAM for character in text)
        if not pictogram and self._own.has(text):
            return self._own
        spare: Face | None = None
        for face, emoji in self._all():
            unsuited = emoji and not pictogram
            if not (unsuited and spare) and face.has(text):
                if not unsuited:
                    return face
                spare = face
        return spare or (self._own if self._own.has(text) else None)

    def _all(self) -> Iterator[tuple[Face, bool]]:
        yield from self._opened
        for path in self._files:
            face = Face(path, self._layout)
            if face.works:
                self._opened.append((face, is_emoji(path)))
                yield self._opened[-1]


def system_fonts(folders: Iterable[Path] | None = None) -> list[Path]:
    """The font files of this machine, the best for texts and for emoji first."""
    found: dict[Path, None] = {}
    for folder in font_folders() if folders is None else folders:
        for place, _, names in os.walk(folder):
            found |= dict.fromkeys(Path(place, name) for name in names)
            if len(found) > 10 * MOST_FILES:  # somebody's collection
                break
    usable = (path for path in found if path.suffix.lower() in SUFFIXES and not _is(path, FULL_OF_BOXES))
    return sorted(usable, key=_rank)[:MOST_FILES]


def font_folders() -> list[Path]:
    """Where this system and its user have fonts."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        own = os.environ.get("LOCALAPPDATA", str(home / "AppData/Local"))
        return [Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts"), Path(own, "Microsoft/Windows/Fonts")]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
    return [*(Path(folder, "fonts") for folder in [*shared.split(":"), own]), home / ".fonts"]


def is_emoji(path: Path) -> bool:
    """Whether a font is one of emoji, by its name."""
    return _is(path, ("emoji", "seguiemj"))


def _is(path: Path, words: Iterable[str]) -> bool:
    stem = path.stem.lower()
    return any(word in stem for word in words)


def _rank(path: Path) -> tuple[int, int, bool, str]:
    stem = path.stem.lower()
    if is_emoji(path):
        return 0, next(place for place, word in enumerate(EMOJI) if word in stem), False, str(path)
    place = next((place for place, name in enumerate(PREFERRED) if stem.startswith(name)), len(PREFERRED))
    plain = not _is(path, ("bold", "italic", "oblique", "light", "black", "thin", "mono", "serif", "condensed"))
    return (1 if plain else 2), place, stem not in PREFERRED, str(path)


@lru_cache(maxsize=4096)
def clusters(text: str) -> tuple[str, ...]:
    """A text cut into what must not be parted: letters with their marks, emoji that are joined."""
    found: list[str] = []
    for character in text:
        if found and (_joins(character) or found[-1].endswith("\u200d") or _is_half_flag(found[-1], character)):
            found[-1] += character
        else:
            found.append(character)
    return tuple(found)


def _joins(character: str) -> bool:
    skin = "\U0001f3fb" <= character <= "\U0001f3ff"
    return character in JOINERS or skin or unicodedata.category(character).startswith("M")


def _is_half_flag(before: str, character: str) -> bool:
    return len(before) == 1 and all("\U0001f1e6" <= each <= "\U0001f1ff" for each in (before, character))
