"""The training pictures: emoji drawn at a random size and place on a plain background, each with its caption.

A picture is 64x64 RGB. The artwork is Twemoji's (SVG, CC-BY 4.0), the names are Unicode's, in lower case.
A caption that names no background means a white one.
"""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE = 64
ARTWORK_SIZE = 160  # rendered once at this size, resized for each picture

# Animals, plants, food, places, vehicles, things: the ones that look like something at 64 pixels.
RANGES = (
    (0x1F30A, 0x1F30B), (0x1F308, 0x1F308), (0x1F30D, 0x1F30D), (0x1F319, 0x1F319), (0x1F31E, 0x1F31F),
    (0x1F32A, 0x1F32A), (0x1F32D, 0x1F353), (0x1F354, 0x1F37F), (0x1F380, 0x1F384), (0x1F388, 0x1F388),
    (0x1F392, 0x1F393), (0x1F3A4, 0x1F3A5), (0x1F3A7, 0x1F3A9), (0x1F3AE, 0x1F3AF), (0x1F3B1, 0x1F3B3),
    (0x1F3B7, 0x1F3BB), (0x1F3C0, 0x1F3C0), (0x1F3C6, 0x1F3C6), (0x1F3C8, 0x1F3C8), (0x1F3E0, 0x1F3E0),
    (0x1F3F0, 0x1F3F0), (0x1F400, 0x1F43F), (0x1F440, 0x1F440), (0x1F444, 0x1F444), (0x1F451, 0x1F451),
    (0x1F455, 0x1F457), (0x1F45F, 0x1F460), (0x1F47B, 0x1F47E), (0x1F480, 0x1F480), (0x1F48E, 0x1F48E),
    (0x1F494, 0x1F494), (0x1F499, 0x1F49C), (0x1F4A1, 0x1F4A1), (0x1F4A3, 0x1F4A3), (0x1F4A7, 0x1F4A7),
    (0x1F4BE, 0x1F4BE), (0x1F4D7, 0x1F4D9), (0x1F4E6, 0x1F4E6), (0x1F4F7, 0x1F4F7), (0x1F4FA, 0x1F4FB),
    (0x1F511, 0x1F512), (0x1F514, 0x1F514), (0x1F525, 0x1F525), (0x1F528, 0x1F528), (0x1F52C, 0x1F52C),
    (0x1F577, 0x1F577), (0x1F5FF, 0x1F5FF), (0x1F680, 0x1F682), (0x1F68C, 0x1F68C), (0x1F691, 0x1F693),
    (0x1F695, 0x1F695), (0x1F697, 0x1F697), (0x1F69C, 0x1F69C), (0x1F6A2, 0x1F6A2), (0x1F6B2, 0x1F6B2),
    (0x1F6F8, 0x1F6F8), (0x1F916, 0x1F916), (0x1F950, 0x1F950), (0x1F951, 0x1F955), (0x1F95A, 0x1F95E),
    (0x1F965, 0x1F966), (0x1F968, 0x1F968), (0x1F96A, 0x1F96A), (0x1F96D, 0x1F96D), (0x1F96F, 0x1F96F),
    (0x1F980, 0x1F99F), (0x1F9A1, 0x1F9A9), (0x1F9AB, 0x1F9AD), (0x1F9C0, 0x1F9C1), (0x1F9C5, 0x1F9C5),
    (0x1F9E0, 0x1F9E0), (0x1F9E6, 0x1F9E6), (0x1F9F8, 0x1F9F8), (0x1FA90, 0x1FA90), (0x1FAD0, 0x1FAD1),
)  # fmt: skip
COLOURS = {
    "white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128), "red": (220, 40, 40),
    "orange": (250, 150, 40), "yellow": (250, 225, 60), "green": (50, 160, 70), "blue": (50, 100, 220),
    "purple": (130, 60, 170), "pink": (250, 170, 200),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how an emoji is drawn: its side and its left upper corner in pixels, and whether it is mirrored."""

    side: int
    left: int
    top: int
    flip: bool


def names() -> list[str]:
    """The names of all emoji used, in the order of their code points."""
    return [unicodedata.name(chr(point)).lower() for point in _points()]


def load_artwork(svg_folder: Path) -> list[Image.Image]:
    """RGBA pictures, one for each of `names()`."""
    return [_render_svg(svg_folder / f"{point:x}.svg") for point in _points()]


def draw(artwork: Image.Image, place: Place, colour: tuple[int, int, int]) -> np.ndarray:
    """One picture, uint8 [64, 64, 3]."""
    emoji = artwork.resize((place.side, place.side), Image.Resampling.BOX, reducing_gap=None)
    if place.flip:
        emoji = emoji.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(emoji, dtype=np.float32)
    picture = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    picture[:] = colour
    rows, columns = slice(place.top, place.top + place.side), slice(place.left, place.left + place.side)
    alpha = pixels[..., 3:] / 255
    picture[rows, columns] = pixels[..., :3] * alpha + picture[rows, columns] * (1 - alpha)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def random_place(random: np.random.Generator) -> Place:
    """A large emoji somewhere near the middle; half of them mirrored."""
    side = int(random.integers(46, 61))
    left, top = random.integers(1, SIZE - side, 2)
    return Place(side=side, left=int(left), top=int(top), flip=bool(random.integers(2)))


def random_caption(random: np.random.Generator, name: str) -> tuple[str, str]:
    """A caption and the colour of the background that it asks for."""
    if random.random() < 0.35:
        return name, "white"
    colour = str(random.choice(list(COLOURS)))
    return caption(name, colour), colour


def caption(name: str, colour: str) -> str:
    """The caption of an emoji on a coloured background."""
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{name} on {article} {colour} background"


def _points() -> list[int]:
    return [point for first, last in RANGES for point in range(first, last + 1)]


def _render_svg(path: Path) -> Image.Image:
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=ARTWORK_SIZE, height=ARTWORK_SIZE))
    return Image.open(io.BytesIO(png)).convert("RGBA")
