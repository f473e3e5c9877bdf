"""Which picture stands where on a contact sheet: two axes make rows and columns, the others blocks of these.

The two axes are chosen so that blocks are well filled, neither long nor small, and prompts are rows. A sweep without
two axes, or one that such blocks would leave nearly empty, is a plain sheet with captions. Nothing is measured here
beyond a block's rough size, and nothing is drawn.

    arrangement = arrange(items)
    for block in arrangement.blocks: ...
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runner.report.axes import Codes, Column

MOST_PICTURES = 10_000
MOST_BLANK = 3  # cells for each picture; beyond that it is a plain sheet
LEAST_FILLED = 2  # pictures in a block, on the average
PLAIN, MOST_PER_ROW = 50, 400  # pictures in a row of a plain sheet, by itself and if asked for
MOST_AXES = 8  # that are tried as rows and columns
CELL, LABEL, LINES = 134, 120, 90  # pixels, of a usual block: a cell, the labels at one side, those above and below
LONGEST = 2400  # pixels of a block; a longer one is cut in the end
TEXTS = ("prompt", "negative")
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What a sheet shows: all rows that a manifest asks for, in its order; `made` says which have a record.

    Columns are the keys that differ; a row without a picture has its problem.
    """

    columns: Sequence[Column]
    common: Mapping[str, str]
    made: Sequence[bool]
    paths: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    problems: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A matrix of rows of items. A plain one has captions, and neither labels nor a heading."""

    heading: tuple[tuple[str, str], ...] = ()
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[int, int], int]
    captions: Mapping[tuple[int, int], tuple[tuple[str, str], ...]] | None = None

    def cut(self, most_rows: int, most_columns: int) -> list[Block]:
        """The block in pieces of at most so many rows and columns, all of about one size."""
        pieces = []
        for rows, columns in itertools.product(_spans(self.rows, most_rows), _spans(self.columns, most_columns)):
            inside = [place for place in self.cells if place[0] in rows and place[1] in columns]
            moved = {place: (place[0] - rows.start, place[1] - columns.start) for place in inside}
            pieces.append(
                Block(
                    heading=self.heading,
                    rows=self.rows[rows.start : rows.stop],
                    columns=self.columns[columns.start : columns.stop],
                    cells={moved[place]: self.cells[place] for place in inside},
                    captions=self.captions and {moved[place]: self.captions[place] for place in inside},
                )
            )
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """All blocks, the names of the axes in them, and how many blocks stand side by side by their own axes."""

    row_axis: str = ""
    column_axis: str = ""
    blocks: Sequence[Block]
    side_by_side: int = 1
    alike: Sequence[tuple[str, str]] = ()  # what all that was made has, though not all that is asked for
    shown: int  # items
    total: int


def arrange(items: Items, per_row: int | None = None) -> Arrangement:
    """The blocks of a sheet; with `per_row` a plain one with so many pictures in a row."""
    made = np.asarray(items.made, dtype=bool)
    alike = _alike(items.columns, np.flatnonzero(made))
    swept = [column for column in items.columns if column.swept]
    if not per_row:
        rows = np.flatnonzero(made | _among(swept, made))
        axes = [axis for axis in (_of_rows(column, rows) for column in swept) if len(axis.values) > 1]
        if plane := choose_plane(axes, len(rows)):
            return replace(_in_blocks(items, rows, axes, plane), alike=alike)
    rows = np.flatnonzero(made)
    block = _plain(items, rows[:MOST_PICTURES], swept or items.columns, per_row)
    shown = min(len(rows), MOST_PICTURES)
    return Arrangement(blocks=[block] if shown else [], alike=alike, shown=shown, total=len(rows))


def choose_plane(axes: Sequence[Column], items: int) -> tuple[int, int] | None:
    """The places of the axes that are rows and columns; None where a plain sheet is better."""
    largest = sorted(sorted(range(len(axes)), key=lambda place: -len(axes[place].values))[:MOST_AXES])
    best: tuple[float, int, int] | None = None
    for rows, columns in itertools.permutations(largest, 2):
        others = [axes[place] for place in range(len(axes)) if place not in (rows, columns)]
        high, wide = _sides(_combined(others, items), axes[rows].codes, axes[columns].codes)
        cells = int((high * wide).sum())
        if cells > MOST_BLANK * items or items < LEAST_FILLED * len(high):
            continue
        cost = _cost(axes[rows], axes[columns], high, wide, items)
        if best is None or cost < best[0] - 1e-9:
            best = cost, rows, columns
    return best[1:] if best else None


def _cost(rows: Column, columns: Column, high: Places, wide: Places, items: int) -> float:
    """How bad a choice is: how much paper it takes, how long its blocks are, and what people look for elsewhere."""
    area = float(((wide * CELL + 2 * LABEL) * (high * CELL + LINES)).sum()) / (items * CELL * CELL)
    across, down = float(wide.mean()) * CELL + 2 * LABEL, float(high.mean()) * CELL + LINES
    shape = abs(math.log2(across / down))
    long = math.log2(max(1.0, across / LONGEST, down / LONGEST))
    wishes = 0.0 if rows.name == "prompt" else 1.0
    wishes += 2.0 * (columns.name in TEXTS) + 0.5 * ("seed" in (rows.name, columns.name))
    wishes += 0.1 * (rows.name == "seed")
    return math.log2(area) + 0.5 * max(0.0, shape - 1) + long + wishes


def apart(texts: Sequence[str], fits: int) -> list[str]:
    """Texts of about so many letters, each with its beginning and with where it begins to differ from all others."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    alike = [0] * len(texts)
    for one, next_ in itertools.pairwise(order):
        if texts[one] != texts[next_]:
            same = _same_letters(texts[one], texts[next_])
            alike[one], alike[next_] = max(alike[one], same), max(alike[next_], same)
    return [_from_difference(text, same, fits) for text, same in zip(texts, alike, strict=True)]


def _from_difference(text: str, same: int, fits: int) -> str:
    head = fits // 3
    if len(text) <= fits or same < fits - 8:
        return text
    start = max(text.rfind(" ", 0, same) + 1, same - 12)  # the whole word, if that isn't long
    rest = min(start, max(head, len(text) - (fits - head)))  # more of it where the difference is near the end
    return f"{text[:head].rstrip()} … {text[rest:]}"


def _same_letters(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _in_blocks(items: Items, rows: Places, axes: Sequence[Column], plane: tuple[int, int]) -> Arrangement:
    row_axis, column_axis = (axes[place] for place in plane)
    others = [axis for place, axis in enumerate(axes) if place not in plane]
    block_of = _combined(others, len(rows))
    made = np.asarray(items.made, dtype=bool)
    blocks: list[Block] = []
    loose: list[int] = []
    shown = 0
    for inside in _groups(block_of):
        kept = inside[: MOST_PICTURES - shown]
        if made[rows[kept]].any():
            heading = tuple((axis.name, axis.values[axis.codes[kept[0]]]) for axis in others)
            block, doubles = _block(heading, row_axis, column_axis, kept, rows)
            blocks.append(block)
            loose += doubles
            shown += len(kept)
    if loose:
        blocks.append(_plain(items, np.asarray(loose), items.columns, None))
    return Arrangement(
        row_axis=row_axis.name,
        column_axis=column_axis.name,
        blocks=blocks,
        side_by_side=len(others[-1].values) if others else 1,
        shown=shown,
        total=len(rows),
    )


def _block(
    heading: tuple[tuple[str, str], ...], row_axis: Column, column_axis: Column, inside: Places, rows: Places
) -> tuple[Block, list[int]]:
    """The block of some places in `rows`, with the rows and columns that it needs, and items whose cell is taken."""
    down, up = (_of_rows(axis, inside) for axis in (row_axis, column_axis))
    cells: dict[tuple[int, int], int] = {}
    doubles = []
    for row, column, item in zip(down.codes.tolist(), up.codes.tolist(), rows[inside].tolist(), strict=True):
        if cells.setdefault((row, column), item) != item:
            doubles.append(item)
    return Block(heading=heading, rows=down.values, columns=up.values, cells=cells), doubles


def _plain(items: Items, rows: Places, columns: Sequence[Column], per_row: int | None) -> Block:
    differing = [axis for axis in (_of_rows(column, rows) for column in columns) if len(axis.values) > 1]
    wide = min(per_row, MOST_PER_ROW) if per_row else min(math.ceil(math.sqrt(len(rows))), PLAIN)
    places = [divmod(number, wide) for number in range(len(rows))]
    captions = {
        place: tuple((axis.name, axis.values[axis.codes[number]]) for axis in differing)
        for number, place in enumerate(places)
    }
    return Block(
        rows=("",) * math.ceil(len(rows) / max(1, wide)),
        columns=("",) * min(wide, len(rows)),
        cells=dict(zip(places, rows.tolist(), strict=True)),
        captions=captions,
    )


def _among(columns: Sequence[Column], made: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows all of whose values some row has that was made."""
    found = np.full(len(made), bool(columns))
    for column in columns:
        codes = column.codes[: len(made)]
        used = np.zeros(len(column.values), dtype=bool)
        used[codes[made]] = True
        found &= used[codes]
    return found


def _alike(columns: Sequence[Column], rows: Places) -> list[tuple[str, str]]:
    kept = [_of_rows(column, rows) for column in columns]
    return [(column.name, column.values[0]) for column in kept if len(column.values) == 1]


def _of_rows(column: Column, rows: Places) -> Column:
    """A column of these rows alone, with the values that they have."""
    used, codes = np.unique(column.codes[rows], return_inverse=True)
    values = [column.values[each] for each in used]
    return Column(name=column.name, values=values, codes=codes.astype(np.uint32), swept=column.swept)


def _combined(columns: Iterable[Column], rows: int) -> Places:
    """A number for each combination of values, in their order."""
    found = np.zeros(rows, dtype=np.intp)
    for column in columns:
        found = np.unique(found * len(column.values) + column.codes, return_inverse=True)[1]
    return found


def _groups(numbers: Places) -> list[Places]:
    """The places of each number, by number."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _sides(block_of: Places, rows: Codes, columns: Codes) -> tuple[Places, Places]:
    """How many rows and columns each block has."""
    high, wide = (np.bincount(np.unique(block_of << 32 | codes.astype(np.intp)) >> 32) for codes in (rows, columns))
    return high, wide


def _spans(labels: Sequence[str], most: int) -> list[range]:
    parts = math.ceil(len(labels) / max(1, most))
    edges = [len(labels) * part // parts for part in range(parts + 1)]
    return [range(*each) for each in itertools.pairwise(edges)]
