"""Texts on a sheet, in any script: measured, cut into lines, and drawn.

A word is drawn in the first font that has all of it. A character without a font loses its accents, or stands as its
name or its number: `:snow capped mountain:`, `U+732B`. Arabic letters are joined, and run from the right, where Pillow
has Raqm, as its wheels do; without it they run from the right only.

    lettering = Lettering(Fonts(system_fonts()))
    for line in lettering.wrap("a cat on a mat", size=14, width=80, most=2): ...
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from runner.report.sheet.fonts import JOINERS, Face, Fonts, clusters

MOST_LETTERS = 400  # of a label: a prompt may be a whole book
FROM_RIGHT = frozenset({"R", "AL"})
ELLIPSIS = "…"


class Lettering:
    """Texts in one chain of fonts; a size is in pixels."""

    def __init__(self, fonts: Fonts) -> None:
        self._fonts = fonts
        self.lacking: set[str] = set()  # characters that stand as their names or numbers
        self._segments = lru_cache(maxsize=4096)(self._cut)
        self.length = lru_cache(maxsize=65536)(self._length)

    def line_height(self, size: int) -> int:
        """Pixels from one line to the next."""
        return math.ceil(1.3 * size)

    def wrap(self, text: str, size: int, width: int, most: int) -> list[str]:
        """A text in lines of a width, at most so many, the last one cut with an ellipsis; they are for `draw`."""
        lines: list[str] = []
        for space, word in _words(self.readable(text[:MOST_LETTERS])):
            longer = f"{lines[-1]}{space}{word}" if lines else word
            if lines and self.length(longer, size) <= width:
                lines[-1] = longer
            else:
                lines += self._broken(word, size, width)
            if len(lines) > most:
                break
        if len(lines) > most > 0:
            lines = [*lines[: most - 1], self._elided(f"{lines[most - 1]} {lines[most]}", size, width)]
        return [self._elided(line, size, width) for line in lines[: max(0, most)]]

    def readable(self, text: str) -> str:
        """The text with characters that some font has; line ends and whatever else is invisible are spaces."""
        if text.isascii() and text.isprintable():
            return text
        normal = unicodedata.normalize("NFC", text)
        shown = "".join(c if c.isprintable() or c in JOINERS else " " for c in normal)
        return "".join(self._substitute(each) for each in clusters(" ".join(shown.split())))

    def draw(self, image: Image.Image, corner: tuple[int, int], line: str, size: int, colour: str) -> None:
        """Draws a line that `wrap` gave; the corner is its upper left one."""
        pen = ImageDraw.Draw(image)
        x, base = float(corner[0]), corner[1] + size
        segments = self._segments(line)
        for face, text in reversed(segments) if _is_from_right(line) else segments:
            font, factor = face.at(size)
            if factor == 1:
                way = self._way(font, text)
                pen.text((x, base), self._spelled(text), colour, font, "ls", direction=way, embedded_color=True)
            else:
                self._paste(image, (x, base), face, text, size, colour)
            x += self._advance(face, text, size)

    def _length(self, line: str, size: int) -> float:
        return sum(self._advance(face, text, size) for face, text in self._segments(line))

    def _advance(self, face: Face, text: str, size: int) -> float:
        font, factor = face.at(size)
        return font.getlength(self._spelled(text), direction=self._way(font, text)) * factor

    def _paste(
        self, image: Image.Image, place: tuple[float, int], face: Face, text: str, size: int, colour: str
    ) -> None:
        """Draws in the one size that a font has, and pastes it in the size that is wanted."""
        font, factor = face.at(size)
        width, ascent = math.ceil(font.getlength(text)), font.getmetrics()[0]
        height = sum(font.getmetrics())
        if not (0 < width < 1 << 15 and 0 < height < 1 << 10):
            return
        drawn = Image.new("RGBA", (width, height))
        ImageDraw.Draw(drawn).text((0, ascent), self._spelled(text), colour, font, "ls", embedded_color=True)
        small = drawn.resize((max(1, round(width * factor)), max(1, round(height * factor))))
        image.paste(small, (round(place[0]), place[1] - round(ascent * factor)), small)

    def _cut(self, line: str) -> list[tuple[Face, str]]:
        """What is drawn in one font each, in the order of reading; a space belongs to a font that is on both sides."""
        found: list[tuple[Face, str]] = []
        for space, word in _words(line, apart=False):
            for face, text in self._of_word(word):
                if found and found[-1][0] is face and not (space and face.in_one_size):
                    found[-1] = face, f"{found[-1][1]}{space}{text}"
                else:
                    if space:
                        found.append((self._fonts.own, space))
                    found.append((face, text))
                space = ""
        return found

    def _of_word(self, word: str) -> list[tuple[Face, str]]:
        if face := self._fonts.face_of(word):
            return [(face, word)]
        return [(self._fonts.face_of(each) or self._fonts.own, each) for each in clusters(word)]

    def _substitute(self, cluster: str) -> str:
        if cluster == " " or self._fonts.face_of(cluster):
            return cluster
        parts = [each for each in cluster if each not in JOINERS]
        bare = "".join(c for c in unicodedata.normalize("NFKD", "".join(parts)) if not unicodedata.combining(c))
        if bare and self._fonts.face_of(bare):
            return bare
        # A mark without its letter would be drawn with a circle in its place.
        alone = [each for each in parts if len(parts) > 1 and not _is_mark(each)]
        named = [each for each in parts if each not in alone]
        self.lacking.update(named)
        return "".join(self._substitute(each) if each in alone else f" {_name(each)} " for each in parts)

    def _broken(self, word: str, size: int, width: int) -> Iterator[str]:
        """A word that is longer than a line, in pieces."""
        rest = clusters(word)
        while rest:
            fitting = max(1, self._fitting(rest, size, width))
            yield "".join(rest[:fitting])
            rest = rest[fitting:]

    def _elided(self, line: str, size: int, width: int) -> str:
        if self.length(line, size) <= width:
            return line
        letters = clusters(line)
        kept = "".join(letters[: self._fitting(letters, size, width - self.length(ELLIPSIS, size))]).rstrip(" ,·")
        return kept + ELLIPSIS if kept else ""

    def _fitting(self, letters: Sequence[str], size: int, width: float) -> int:
        """How many of the letters fit."""
        return bisect_right(
            range(1, len(letters) + 1), width, key=lambda count: self._length("".join(letters[:count]), size)
        )

    def _spelled(self, text: str) -> str:
        if self._fonts.shapes:
            return text
        bare = "".join(character for character in text if character not in JOINERS)
        return bare[::-1] if _is_from_right(bare) else bare

    def _way(self, font: ImageFont.FreeTypeFont, text: str) -> str | None:
        if not self._fonts.shapes or font.layout_engine != ImageFont.Layout.RAQM:  # Pillow's own font is never shaped
            return None
        return "rtl" if _is_from_right(text) else "ltr"


def _words(text: str, *, apart: bool = True) -> Iterator[tuple[str, str]]:
    """The words of a text, each with the space before it; with `apart` a Chinese or Japanese letter is a word."""
    for number, word in enumerate(text.split()):
        space, rest = " " if number else "", ""
        for cluster in clusters(word) if apart else (word,):
            if apart and unicodedata.east_asian_width(cluster[0]) in "WF":
                if rest:
                    yield space, rest
                    space, rest = "", ""
                yield space, cluster
                space = ""
            else:
                rest += cluster
        if rest:
            yield space, rest


def _is_from_right(text: str) -> bool:
    """Whether a text begins with letters that run from the right."""
    strong = (unicodedata.bidirectional(character) for character in text)
    return next((way for way in strong if way in FROM_RIGHT or way == "L"), "L") in FROM_RIGHT


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _name(character: str) -> str:
    if unicodedata.category(character) == "So" and (name := unicodedata.name(character, "")):
        return f":{name.lower()}:"
    return f"U+{ord(character):04X}"
