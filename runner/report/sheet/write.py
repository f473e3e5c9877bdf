"""Writes `grid.png`, and `grid-2.png` and so on where one page isn't enough, into a run folder.

write(store, items)
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

from PIL import Image

from runner.folder.names import GALLERY, grid_page
from runner.folder.store import Store
from runner.report.sheet.arrange import Arrangement, Items, arrange
from runner.report.sheet.draw import Drawing
from runner.report.sheet.fonts import Fonts, system_fonts
from runner.report.sheet.lettering import Lettering
from runner.report.sheet.paper import Labels, lay_out, shown

NO_FONT = "no font of this machine has {} of the characters, they stand as names or numbers"


def write(store: Store, items: Items, per_row: int | None = None) -> int:
    """Writes all pages and removes those of an earlier, larger sheet; how many there are.

    `per_row` makes a plain sheet with so many pictures in a row.
    """
    count = 0
    # A page is let go before the next one is drawn.
    for count, data in enumerate(map(to_png, render(store, items, per_row, Lettering(Fonts(system_fonts())))), 1):
        store.put(grid_page(count), data)
    for number in itertools.count(count + 1):
        if store.size(grid_page(number)) < 0:
            break
        store.remove(grid_page(number))
    return count


def render(store: Store, items: Items, per_row: int | None, lettering: Lettering) -> Iterator[Image.Image]:
    """The pages, one at a time."""
    arrangement = arrange(items, per_row)
    inside = itertools.chain.from_iterable(block.cells.values() for block in arrangement.blocks)
    for value in itertools.chain(items.common.values(), *(column.values for column in items.columns)):
        lettering.readable(value)  # so that the footer knows what no font has
    footer = _footer(arrangement, items, lettering)
    measures, pages = lay_out(arrangement, {items.sizes[item] for item in inside}, lettering, footer)
    labels = Labels(arrangement, lettering, measures)
    for number, page in enumerate(pages, 1):
        which = f"page {number} of {len(pages)} · " if len(pages) > 1 else ""
        yield Drawing(page, items, measures, lettering).draw(store, labels, which + footer)


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _footer(arrangement: Arrangement, items: Items, lettering: Lettering) -> str:
    said = [f"{arrangement.shown:,} item{'s' * (arrangement.shown != 1)}"]
    if arrangement.shown < arrangement.total:
        said = [f"the first {arrangement.shown:,} of {arrangement.total:,} items, {GALLERY} has all"]
    if lettering.lacking:
        said.append(NO_FONT.format(len(lettering.lacking)))
    alike = dict(arrangement.alike) | dict(items.common)
    return " · ".join([*said, *(f"{name} {shown(value)}" for name, value in alike.items())])
