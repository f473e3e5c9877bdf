"""How large everything on a contact sheet is, and which block stands where on which page.

Pictures are as large as one page allows; where they would be too small for that, there are more pages. A page is
bounded, since whoever makes or opens it has all of it in memory.

    measures, pages = lay_out(arrangement, sizes, lettering, footer)
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runner.report.sheet.arrange import TEXTS, Arrangement, Block, apart
from runner.report.sheet.lettering import Lettering

MAX_PIXELS, MAX_SIDE = 50_000_000, 16_000  # of a page: 150 MB
LONGEST_BLOCK = 3600  # pixels, so that labels are never far
SMALL, LARGE = 128, 224  # pixels of a picture's longer side: a smaller one is enlarged, a larger one reduced
LEAST, PAGED, SMALLEST = 96, 128, 12  # the least on one page, that on several, and where so many are in a row
GAP, MARGIN, BETWEEN, NARROWEST = 6, 24, 40, 480
WIDEST_LABEL, HEADING_LINES, LABEL_LINES, CAPTION_LINES, FOOTER_LINES = 220, 2, 3, 3, 4
MEASURED = 20  # labels, the longest ones
USUAL_SHAPE = 1.4  # width by height
Corners = dict[int, tuple[int, int]]  # of blocks by number


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Pixels: the box of a picture, letters, the labels at the sides, above, and the heading."""

    box: tuple[int, int]
    letters: int
    line: int
    side: int
    over: int
    heading: int
    caption: int

    @property
    def step(self) -> tuple[int, int]:
        """From one picture to the next."""
        return self.box[0] + GAP, self.box[1] + GAP + self.caption

    def size_of(self, block: Block) -> tuple[int, int]:
        """Width and height of a block."""
        (x, y), (across, down) = self.origin_of(block), self.step
        width = 2 * x + len(block.columns) * across - GAP
        return width, y + len(block.rows) * down - GAP + (0 if block.captions else self.over)

    def origin_of(self, block: Block) -> tuple[int, int]:
        """Where the first picture of a block is."""
        heading = self.heading if block.heading else 0
        return (0, heading) if block.captions else (self.side, heading + self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Blocks with their upper left corners."""

    size: tuple[int, int]
    placed: Sequence[tuple[Block, tuple[int, int]]]


class Labels:
    """The texts of an arrangement's labels; prompts by what tells them apart."""

    def __init__(self, arrangement: Arrangement, lettering: Lettering, measures: Measures) -> None:
        self._short: dict[tuple[str, int], str] = {}
        across, lines = measures.box[0], row_lines(measures)
        spaces = {0: measures.side * lines, 1: across * LABEL_LINES, 2: across * CAPTION_LINES, 3: 6 * across}
        for place, texts in enumerate(_long_texts(arrangement)):
            letters = sum(len(text[:60]) for text in texts)
            width = sum(lettering.length(text[:60], measures.letters) for text in texts) / max(1, letters)
            short = apart(texts, int(0.85 * spaces[place] / max(1.0, width)))
            self._short |= {(text, place): label for text, label in zip(texts, short, strict=True)}

    def row(self, value: str) -> str:
        return self._short.get((value, 0), shown(value))

    def column(self, value: str) -> str:
        return self._short.get((value, 1), shown(value))

    def caption(self, said: Iterable[tuple[str, str]]) -> str:
        return " · ".join(
            self._short.get((value, 2), shown(value)) if name in TEXTS else f"{name} {shown(value)}"
            for name, value in said
        )

    def heading(self, said: Iterable[tuple[str, str]]) -> str:
        return ", ".join(f"{name}: {self._short.get((value, 3), shown(value))}" for name, value in said)


def shown(value: str) -> str:
    """A value as it is read."""
    return value if value.strip() else "(empty)"


def row_lines(measures: Measures) -> int:
    """How many lines the label of a row may have."""
    return max(1, measures.step[1] // measures.line)


def lay_out(
    arrangement: Arrangement, sizes: Iterable[tuple[int, int]], lettering: Lettering, footer: str
) -> tuple[Measures, list[Page]]:
    """The largest pictures with which all is on one page, or pages with pictures of an ordinary size."""
    each = list(sizes)
    largest = max((width for width, _ in each), default=64), max((height for _, height in each), default=64)
    longer = max(largest)
    scale = most = math.ceil(SMALL / longer) if longer <= SMALL else LARGE / longer
    while longer * scale >= LEAST:
        measures = _measure(arrangement, lettering, largest, scale)
        pages = _pages(arrangement, measures, lettering, footer)
        if len(pages) <= 1 and _are_within(pages):
            return measures, pages
        scale *= 0.9
    scale = min(most, PAGED / longer)
    while True:
        measures = _measure(arrangement, lettering, largest, scale)
        pages = _pages(arrangement, measures, lettering, footer)
        if _are_within(pages) or longer * scale <= SMALLEST:
            return measures, pages
        scale *= 0.9


def _are_within(pages: Sequence[Page]) -> bool:
    return all(max(page.size) <= MAX_SIDE and math.prod(page.size) <= MAX_PIXELS for page in pages)


def _measure(arrangement: Arrangement, lettering: Lettering, largest: tuple[int, int], scale: float) -> Measures:
    box = max(1, round(largest[0] * scale)), max(1, round(largest[1] * scale))
    letters = 14 if box[0] >= 160 else 12 if box[0] >= 64 else 10
    line = lettering.line_height(letters)
    blocks = [block for block in arrangement.blocks if not block.captions]
    side = over = heading = caption = 0
    if blocks:
        rows = dict.fromkeys(itertools.chain.from_iterable(block.rows for block in blocks))
        columns = dict.fromkeys(itertools.chain.from_iterable(block.columns for block in blocks))
        corners = {block.axes for block in blocks}
        corner = max(sum(lettering.length(name, letters) for name in names) for names in corners)
        widest = max(lettering.length(shown(value)[:60], letters) for value in _longest(rows))
        side = math.ceil(max(min(WIDEST_LABEL, widest), min(WIDEST_LABEL, corner + 2 * GAP))) + 2 * GAP
        lines = max(len(lettering.wrap(shown(value), letters, box[0], LABEL_LINES)) for value in _longest(columns))
        over = line * lines + GAP
    if headed := [block for block in arrangement.blocks if block.heading]:
        heading = line * _heading_lines(headed, lettering, letters, 2 * side + box[0])
    if said := [each for block in arrangement.blocks for each in (block.captions or {}).values() if each]:
        longest = max((" · ".join(f"{name} {value}" for name, value in each) for each in said), key=len)
        caption = line * len(lettering.wrap(longest, letters, box[0], CAPTION_LINES))
    return Measures(box=box, letters=letters, line=line, side=side, over=over, heading=heading, caption=caption)


def _longest(values: Iterable[str]) -> list[str]:
    return heapq.nlargest(MEASURED, values, key=len)


def _heading_lines(blocks: Sequence[Block], lettering: Lettering, letters: int, width: int) -> int:
    long = (", ".join(f"{name}: {value}" for name, value in block.heading) for block in blocks)
    return HEADING_LINES if any(lettering.length(text[:200], letters) > width for text in long) else 1


def _pages(arrangement: Arrangement, measures: Measures, lettering: Lettering, footer: str) -> list[Page]:
    blocks: list[Block] = []
    side_by_side = arrangement.side_by_side
    for block in arrangement.blocks:
        pieces = block.cut(*_most_cells(block, measures))
        blocks += pieces
        if len(pieces) > 1 and len(arrangement.blocks) == 1:
            side_by_side = sum(piece.rows == pieces[0].rows for piece in pieces)
    sizes = [measures.size_of(block) for block in blocks]
    most = measures.line * FOOTER_LINES + BETWEEN
    pages = []
    for placed in _places(sizes, [block.part for block in blocks], side_by_side, most):
        right = max((x + sizes[number][0] for number, (x, _) in placed.items()), default=0)
        bottom = max((y + sizes[number][1] for number, (_, y) in placed.items()), default=MARGIN)
        width = max(NARROWEST, right + MARGIN)
        lines = len(lettering.wrap(footer, measures.letters, width - 2 * MARGIN, FOOTER_LINES))
        size = width, bottom + lines * measures.line + BETWEEN
        pages.append(Page(size=size, placed=[(blocks[number], place) for number, place in placed.items()]))
    return pages


def _most_cells(block: Block, measures: Measures) -> tuple[int, int]:
    """How many rows and columns a piece of a block may have."""
    across, down = measures.step
    if block.captions:
        height = min(MAX_SIDE, MAX_PIXELS // (len(block.columns) * across + 2 * MARGIN))
        return (height - 200) // down, len(block.columns)
    x, y = measures.origin_of(block)
    longest = min(LONGEST_BLOCK, math.isqrt(MAX_PIXELS) - 200)
    return (longest - y - measures.over) // down, (longest - 2 * x) // across


def _places(sizes: Sequence[tuple[int, int]], parts: Sequence[int], side_by_side: int, footer: int) -> list[Corners]:
    """Blocks by number on each page: side by side, then one shelf below another, in a good shape."""
    best: tuple[float, list[Corners]] = math.inf, [{}]
    reach = 0
    for count, (width, _) in enumerate(sizes, 1):
        reach += width + (BETWEEN if reach else 0)
        if count > 1 and reach > MAX_SIDE - 2 * MARGIN:
            break
        shelves = list(_shelves(sizes, parts, reach))
        whole = max(sum(sizes[each][0] + BETWEEN for each in shelf) for shelf in shelves) + 2 * MARGIN
        pages = _stack(sizes, shelves, min(MAX_SIDE, MAX_PIXELS // whole) - footer)
        height = max(y + sizes[number][1] for page in pages for number, (_, y) in page.items()) + footer
        if count > 1 and whole * height > MAX_PIXELS:
            continue
        blank = 1 - len(sizes) / (len(shelves) * max(map(len, shelves)))
        cost = abs(math.log2(whole / height / USUAL_SHAPE)) + 2 * blank + 0.3 * len(pages) + 10 * (len(pages) > 1)
        cost -= 0.8 * (count % side_by_side == 0) or 0.4 * (side_by_side % count == 0)
        if cost < best[0]:
            best = cost, pages
    return best[1]


def _shelves(sizes: Sequence[tuple[int, int]], parts: Sequence[int], reach: int) -> Iterable[list[int]]:
    shelf: list[int] = []
    used = 0
    for number, (width, _) in enumerate(sizes):
        if shelf and (used + width > reach or parts[number] != parts[number - 1]):
            yield shelf
            shelf, used = [], 0
        shelf.append(number)
        used += width + BETWEEN
    if shelf:
        yield shelf


def _stack(sizes: Sequence[tuple[int, int]], shelves: Sequence[list[int]], most: int) -> list[Corners]:
    """The corners of all blocks; a shelf that ends beyond so many pixels begins a page."""
    pages: list[Corners] = [{}]
    y = MARGIN
    for shelf in shelves:
        height = max(sizes[number][1] for number in shelf)
        if pages[-1] and y + height > most:
            pages.append({})
            y = MARGIN
        x = MARGIN
        for number in shelf:
            pages[-1][number] = x, y
            x += sizes[number][0] + BETWEEN
        y += height + BETWEEN
    return pages


def _long_texts(arrangement: Arrangement) -> list[list[str]]:
    """The texts among the labels of rows, of columns, in captions, and in headings."""
    found: list[dict[str, None]] = [{}, {}, {}, {}]
    for block in arrangement.blocks:
        for place, (axis, values) in enumerate(zip(block.axes, (block.rows, block.columns), strict=True)):
            if axis in TEXTS and not block.captions:
                found[place] |= dict.fromkeys(values)
        said = itertools.chain.from_iterable((block.captions or {}).values())
        for place, pairs in ((2, said), (3, block.heading)):
            found[place] |= {value: None for name, value in pairs if name in TEXTS}
    return [[text for text in texts if text.strip()] for texts in found]
