"""The training pictures: emoji drawn at one of a few sizes and places on a plain background, each with its caption.

A picture is 128x128 RGB. The artwork is Twemoji's (SVG, CC-BY 4.0), the names are Unicode's, in lower case.
A caption that names no background means a white one.

An emoji's sides and edges lie on the grid of the autoencoder's 8x8 cells. The same emoji one place further is then
the same latents one cell further: the autoencoder needs no fractions of a cell, and the UNet needs not guess them.
"""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE = 128
MARGIN = 4  # the least distance to the left and upper border
CELL = 8  # pixels of a latent
SIDES = (96, 104, 112, 120)
FREE_SIDES = tuple(range(64, 125, 4))

# Animals, plants, food, places, vehicles, things: the ones that look like something when they are small.
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


class Artwork:
    """Twemoji's drawings of `names()`, rendered at the size that is asked for."""

    def __init__(self, svg_folder: Path) -> None:
        self.files = [svg_folder / f"{point:x}.svg" for point in _points()]
        self.render = cache(self._render)

    def _render(self, number: int, side: int) -> np.ndarray:
        """RGBA, uint8 [side, side, 4]."""
        png = bytes(resvg_py.svg_to_bytes(svg_path=str(self.files[number]), width=side, height=side))
        drawn = Image.open(io.BytesIO(png)).convert("RGBA")
        square = Image.new("RGBA", (side, side))  # a few drawings are taller than they are wide
        square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
        return np.asarray(square)

    def draw(self, number: int, place: Place, colour: tuple[int, int, int]) -> np.ndarray:
        """One picture, uint8 [128, 128, 3]."""
        emoji = self.render(number, place.side)
        if place.flip:
            emoji = emoji[:, ::-1]
        alpha = emoji[..., 3:].astype(np.float32) / 255
        inside = emoji[..., :3] * alpha + np.float32(colour) * (1 - alpha)
        picture = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
        picture[:] = colour
        rows, columns = slice(place.top, place.top + place.side), slice(place.left, place.left + place.side)
        picture[rows, columns] = np.rint(inside)
        return picture


def _places() -> list[Place]:
    corners = {
        side: [at for at in range(MARGIN, SIZE - MARGIN - side + 1, CELL) if abs(2 * at + side - SIZE) <= 2 * CELL]
        for side in SIDES
    }
    return [
        Place(side=side, left=left, top=top, flip=flip)
        for side in SIDES
        for left in corners[side]
        for top in corners[side]
        for flip in (False, True)
    ]


PLACES = _places()  # on the grid; half of them mirrored


def random_place(random: np.random.Generator) -> Place:
    """A large emoji somewhere near the middle, on the grid."""
    return PLACES[random.integers(len(PLACES))]


def free_place(random: np.random.Generator) -> Place:
    """An emoji anywhere, off the grid: what the autoencoder must also know, for the pictures of img2img."""
    side = int(random.choice(FREE_SIDES))
    left, top = random.integers(SIZE - side + 1, size=2)
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
