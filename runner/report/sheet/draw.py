"""The pages of a contact sheet as pictures: pictures in their cells, labels on all sides, what has no picture as such.

for page in pages:
    Drawing(page, items, measures, lettering).draw(store, labels, footer)
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageDraw

from runner.errors import RunnerError
from runner.folder.names import thumbnail_name
from runner.folder.store import Store
from runner.images.codec import THUMBNAIL
from runner.report.sheet.arrange import Block, Items
from runner.report.sheet.lettering import Lettering
from runner.report.sheet.paper import (
    CAPTION_LINES,
    FOOTER_LINES,
    GAP,
    HEADING_LINES,
    LABEL_LINES,
    MARGIN,
    Labels,
    Measures,
    Page,
    row_lines,
)

LARGE_PIXELS = 1 << 24  # of a picture that is read while no other such one is
THREADS, BATCH = 4, 64
PAPER, INK, SOFT, BLANK = "#ffffff", "#1d1c1a", "#85817a", "#eeece8"
NOT_MADE = "not made yet"
_large = threading.Lock()

Cell = tuple[int, tuple[int, int]]  # an item and the corner of its box


class Drawing:
    """One page while it is drawn."""

    def __init__(self, page: Page, items: Items, measures: Measures, lettering: Lettering) -> None:
        self.image = Image.new("RGB", page.size, PAPER)
        self._page, self._items = page, items
        self._measures, self._lettering = measures, lettering

    def draw(self, store: Store, labels: Labels, footer: str) -> Image.Image:
        """The whole page."""
        cells: list[Cell] = []
        for block, corner in self._page.placed:
            cells += self._cells(block, corner)
            room = self._measures.size_of(block)[0], self._measures.heading
            self._write(labels.heading(block.heading), corner, room, INK, HEADING_LINES)
            if block.captions:
                self._draw_captions(block, corner, labels)
            else:
                self._draw_labels(block, corner, labels)
        self._draw_pictures(store, cells)
        width, height = self.image.size
        room = width - 2 * MARGIN, FOOTER_LINES * self._measures.line
        self._write(footer, (MARGIN, height - MARGIN // 2 - room[1]), room, SOFT, FOOTER_LINES, down=1)
        return self.image

    def _cells(self, block: Block, corner: tuple[int, int]) -> list[Cell]:
        return [(item, self._corner(block, corner, place)) for place, item in block.cells.items()]

    def _corner(self, block: Block, corner: tuple[int, int], place: tuple[int, int]) -> tuple[int, int]:
        (x, y), (across, down) = self._measures.origin_of(block), self._measures.step
        return corner[0] + x + place[1] * across, corner[1] + y + place[0] * down

    def _draw_captions(self, block: Block, corner: tuple[int, int], labels: Labels) -> None:
        width, height = self._measures.box
        for place, said in (block.captions or {}).items():
            x, y = self._corner(block, corner, place)
            room = (width, self._measures.caption)
            self._write(labels.caption(said), (x, y + height + 2), room, INK, CAPTION_LINES)

    def _draw_labels(self, block: Block, corner: tuple[int, int], labels: Labels) -> None:
        m = self._measures
        x = corner[0]
        first = self._corner(block, corner, (0, 0))
        right = first[0] + len(block.columns) * m.step[0]
        below = first[1] + len(block.rows) * m.step[1]
        side = m.side - 2 * GAP
        above = first[1] - m.over
        for name, across in zip(block.axes, (-1, 1), strict=True):
            self._write(name, (x, above), (side, m.over - GAP), SOFT, 1, across, 1)
        for row, value in enumerate(block.rows):
            top, room = first[1] + row * m.step[1], (side, m.box[1])
            label = labels.row(value)
            alone = len(self._lettering.wrap(label, m.letters, side, 2)) < 2
            self._write(label, (x, top), room, INK, row_lines(m), 1 if alone else -1, 0)
            self._write(label, (right + GAP, top), room, INK, row_lines(m), -1, 0)
        for column, value in enumerate(block.columns):
            left, room = first[0] + column * m.step[0], (m.box[0], m.over - GAP)
            self._write(labels.column(value), (left, above), room, INK, LABEL_LINES, 0, 1)
            self._write(labels.column(value), (left, below), room, INK, LABEL_LINES, 0, -1)

    def _draw_pictures(self, store: Store, cells: Sequence[Cell]) -> None:
        with ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a run makes pictures as large
            for start in range(0, len(cells), BATCH):  # so that one slow picture doesn't have all others wait in memory
                batch = cells[start : start + BATCH]
                thumbs = pool.map(lambda cell: self._thumb(store, cell[0]), batch)
                for (item, corner), thumb in zip(batch, thumbs, strict=True):
                    self._draw_picture(item, corner, thumb)

    def _thumb(self, store: Store, item: int) -> Image.Image | None:
        """An item's picture in the size of its box; None if there is none, or it can't be read."""
        path = self._items.paths[item]
        if not path or item in self._items.problems:
            return None
        if max(self._items.sizes[item]) > THUMBNAIL >= max(self._measures.box):
            small = read_small(store, thumbnail_name(path), self._measures.box, ("WEBP",))
            if small:
                return small
        return read_small(store, path, self._measures.box, ("PNG", "JPEG"))

    def _draw_picture(self, item: int, corner: tuple[int, int], thumb: Image.Image | None) -> None:
        (x, y), (width, height) = corner, self._measures.box
        if thumb is not None:
            self.image.paste(thumb, (x + (width - thumb.width) // 2, y + (height - thumb.height) // 2))
            return
        pen = ImageDraw.Draw(self.image)
        edges = (x, y, x + width - 1, y + height - 1)
        if not self._items.made[item]:
            pen.rectangle(edges, outline=BLANK)
            self._write(NOT_MADE, corner, self._measures.box, SOFT, 2, 0, 0)
            return
        pen.rectangle(edges, fill=BLANK)
        problem = self._items.problems.get(item, "unreadable")
        most = (height - 8) // self._measures.line
        self._write(problem, (x + 4, y + 4), (width - 8, height - 8), SOFT, most)

    def _write(
        self,
        text: str,
        corner: tuple[int, int],
        room: tuple[int, int],
        colour: str,
        most: int,
        across: int = -1,
        down: int = -1,
    ) -> None:
        """Writes a text into a room: at its left (-1), in the middle (0) or at its right (1), and so from the top."""
        size, line = self._measures.letters, self._measures.line
        lines = self._lettering.wrap(text, size, room[0], most)
        top = corner[1] + (down + 1) * max(0, room[1] - len(lines) * line) // 2
        for number, each in enumerate(lines):
            spare = max(0, room[0] - round(self._lettering.length(each, size)))
            place = corner[0] + (across + 1) * spare // 2, top + number * line
            self._lettering.draw(self.image, place, each, size, colour)


def read_small(store: Store, path: str, box: tuple[int, int], formats: tuple[str, ...]) -> Image.Image | None:
    """A picture in the size of a box; None if there is none, or it can't be read, or Pillow finds it far too large."""
    try:
        with store.open(path) as file, Image.open(file, formats=formats) as image:
            image.draft("RGB", (2 * box[0], 2 * box[1]))  # of a JPEG no more is decoded than is needed
            if image.width * image.height <= LARGE_PIXELS:
                return _reduced(image, box)
            with _large:
                return _reduced(image, box)
    except RunnerError:  # a store that is down
        raise
    except Exception:  # a broken picture raises almost anything, and must not cost the whole sheet
        return None


def _reduced(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    factor = min(box[0] / image.width, box[1] / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    whole = factor >= 1 and factor == int(factor)
    image.load()
    reduced = image if image.mode == "RGB" else image.convert("RGB")
    if whole:
        return reduced.resize(size, Image.Resampling.NEAREST)
    return reduced.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
