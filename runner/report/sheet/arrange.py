"""Which picture stands where on a contact sheet: two axes make rows and columns, the others blocks of these.

The two axes are chosen so that blocks are well filled, neither long nor small, and prompts are rows. Jobs that sweep
over different axes are parts with axes of their own. What has no two axes, or would leave blocks nearly empty, is a
plain block with captions. Nothing is measured here beyond a block's rough size, and nothing is drawn.

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
MOST_PARTS = 6
WORTH = 0.75  # of the paper of one part; several ones that take more are not worth it
Places = NDArray[np.intp]
Said = tuple[tuple[str, str], ...]  # names of axes with values


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
    """A matrix of rows of items, which two axes name; a plain one has captions instead."""

    part: int = 0
    heading: Said = ()
    axes: tuple[str, str] = ("", "")  # of the rows, and of the columns
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[int, int], int]
    captions: Mapping[tuple[int, int], Said] | None = None

    def cut(self, most_rows: int, most_columns: int) -> list[Block]:
        """The block in pieces of at most so many rows and columns, all of about one size."""
        down, across = _spans(len(self.rows), most_rows), _spans(len(self.columns), most_columns)
        if len(down) * len(across) <= 1:
            return [self]
        (row_spans, column_spans) = ([span for span in spans for _ in span] for spans in (down, across))
        inside: dict[tuple[range, range], list[tuple[int, int]]] = {}
        for row, column in self.cells:
            inside.setdefault((row_spans[row], column_spans[column]), []).append((row, column))
        return [self._piece(*spans, inside[spans]) for spans in itertools.product(down, across) if spans in inside]

    def _piece(self, rows: range, columns: range, inside: Sequence[tuple[int, int]]) -> Block:
        moved = [((row - rows.start, column - columns.start), (row, column)) for row, column in inside]
        return replace(
            self,
            rows=self.rows[rows.start : rows.stop],
            columns=self.columns[columns.start : columns.stop],
            cells={place: self.cells[before] for place, before in moved},
            captions=self.captions and {place: self.captions[before] for place, before in moved},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """All blocks; `side_by_side` is how many of them one axis makes."""

    blocks: Sequence[Block]
    side_by_side: int = 1
    alike: Said = ()  # what all that was made has, though not all that is asked for
    shown: int  # items
    total: int


def arrange(items: Items, per_row: int | None = None) -> Arrangement:
    """The blocks of a sheet; with `per_row` a plain one with so many pictures in a row."""
    made = np.asarray(items.made, dtype=bool)
    swept = [column for column in items.columns if column.swept]
    rows = np.flatnonzero(made if per_row else made | _among(swept, made))
    axes = _differing(swept, rows)
    parts = [np.arange(len(rows))] if per_row else choose_parts(axes, len(rows))
    planes = [None if per_row else _plane_of(axes, part) for part in parts]
    if planes == [None]:
        rows = np.flatnonzero(made)
        parts = [np.arange(len(rows))]
    blocks: list[Block] = []
    shown = 0
    for number, (part, plane) in enumerate(zip(parts, planes, strict=True)):
        kept = rows[part]
        if plane:
            said = _differing(swept, kept) if len(parts) == 1 else [_of_rows(axis, kept) for axis in swept]
            found = _in_blocks(items, kept, said, plane, MOST_PICTURES - shown)
        else:
            found = [_plain(items, kept[: MOST_PICTURES - shown], swept, per_row, aside=len(parts) > 1)]
        blocks += (replace(block, part=number) for block in found if block.cells)
        shown += sum(len(block.cells) for block in found)
    alike = tuple((column.name, column.values[0]) for column in _alike(items.columns, np.flatnonzero(made)))
    side_by_side = max((_last_values(block_of) for block_of in _by_part(blocks)), default=1)
    return Arrangement(blocks=blocks, side_by_side=side_by_side, alike=alike, shown=shown, total=len(rows))


def choose_parts(axes: Sequence[Column], items: int) -> list[Places]:
    """The places of items that are arranged together: all, or by what varies beside one of the axes."""
    best = WORTH * _paper(axes, np.arange(items)), [np.arange(items)]
    for axis in axes[:MOST_AXES]:
        parts = _by_what_varies(axis, axes)
        if 1 < len(parts) <= MOST_PARTS:
            paper = sum(_paper(axes, part) for part in parts)
            if paper < best[0]:
                best = paper, parts
    return best[1]


def choose_plane(axes: Sequence[Column], items: int) -> tuple[float, str, str] | None:
    """What a choice costs in paper, and the axes of rows and columns; None where captions are better."""
    largest = sorted(sorted(range(len(axes)), key=lambda place: -len(axes[place].values))[:MOST_AXES])
    best: tuple[float, float, str, str] | None = None
    for pair in itertools.combinations(largest, 2):
        others = [axes[place] for place in range(len(axes)) if place not in pair]
        sides = _sides(_combined(others, items), *(axes[place].codes for place in pair))
        if int((sides[0] * sides[1]).sum()) > MOST_BLANK * items or items < LEAST_FILLED * len(sides[0]):
            continue
        for (rows, columns), (high, wide) in ((pair, sides), (pair[::-1], sides[::-1])):
            paper = float(((wide * CELL + 2 * LABEL) * (high * CELL + LINES)).sum())
            cost = math.log2(paper) + _cost(axes[rows].name, axes[columns].name, high, wide)
            if best is None or cost < best[0] - 1e-9:
                best = cost, paper, axes[rows].name, axes[columns].name
    return best and best[1:]


def _cost(rows: str, columns: str, high: Places, wide: Places) -> float:
    """How bad a choice is beside its paper: how long its blocks are, and what people look for elsewhere."""
    across, down = float(wide.mean()) * CELL + 2 * LABEL, float(high.mean()) * CELL + LINES
    shape = abs(math.log2(across / down))
    long = math.log2(max(1.0, across / LONGEST, down / LONGEST))
    wishes = (rows != "prompt") + 2.0 * (columns in TEXTS) + 0.5 * ("seed" in (rows, columns)) + 0.1 * (rows == "seed")
    return 0.5 * max(0.0, shape - 1) + long + wishes


def _plane_of(axes: Sequence[Column], part: Places) -> tuple[float, str, str] | None:
    return choose_plane(_differing(axes, part), len(part))


def _paper(axes: Sequence[Column], part: Places) -> float:
    plane = _plane_of(axes, part)
    return plane[0] if plane else len(part) * CELL * (CELL + LINES)


def _by_what_varies(axis: Column, axes: Sequence[Column]) -> list[Places]:
    """Items whose values of an axis have the same other axes vary."""
    marks = np.zeros(len(axis.values), dtype=np.intp)
    for place, other in enumerate(each for each in axes[:MOST_AXES] if each.name != axis.name):
        least, most = np.full(len(marks), len(other.values)), np.full(len(marks), -1)
        np.minimum.at(least, axis.codes, other.codes)
        np.maximum.at(most, axis.codes, other.codes)
        marks |= (least != most).astype(np.intp) << place
    return sorted(_groups(marks[axis.codes]), key=lambda part: int(part[0]))


def apart(texts: Sequence[str], fits: int) -> list[str]:
    """Texts of about so many letters, each with its beginning and with where it begins to differ from all others."""
    order = sorted(set(texts))
    alike = dict.fromkeys(order, 0)
    for one, other in itertools.pairwise(order):
        same = _same_letters(one, other)
        alike[one], alike[other] = max(alike[one], same), same
    return [_from_difference(text, alike[text], fits) for text in texts]


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


def _in_blocks(
    items: Items, rows: Places, axes: Sequence[Column], plane: tuple[float, str, str], most: int
) -> list[Block]:
    by_name = {axis.name: axis for axis in axes}
    row_axis, column_axis = (by_name.pop(name) for name in plane[1:])
    made = np.asarray(items.made, dtype=bool)
    blocks: list[Block] = []
    doubles: list[int] = []
    for inside in _groups(_combined(by_name.values(), len(rows))):
        kept = inside[:most]
        if not made[rows[kept]].any():
            continue
        most -= len(kept)
        heading = tuple((axis.name, axis.values[axis.codes[kept[0]]]) for axis in by_name.values())
        down, up = (_of_rows(axis, kept) for axis in (row_axis, column_axis))
        cells: dict[tuple[int, int], int] = {}
        for row, column, item in zip(down.codes.tolist(), up.codes.tolist(), rows[kept].tolist(), strict=True):
            if cells.setdefault((row, column), item) != item:
                doubles.append(item)
        blocks.append(Block(heading=heading, axes=plane[1:], rows=down.values, columns=up.values, cells=cells))
    return [*blocks, _plain(items, np.asarray(doubles, dtype=np.intp), items.columns, None)]


def _plain(items: Items, rows: Places, axes: Sequence[Column], per_row: int | None, *, aside: bool = False) -> Block:
    """A block with captions; one that is `aside` of others has a heading of what its items share."""
    differing = _differing(axes, rows) or _differing(items.columns, rows)
    wide = min(per_row, MOST_PER_ROW) if per_row else min(math.ceil(math.sqrt(len(rows))), PLAIN)
    places = [divmod(number, wide) for number in range(len(rows))]
    captions = {
        place: tuple((axis.name, axis.values[axis.codes[number]]) for axis in differing)
        for number, place in enumerate(places)
    }
    return Block(
        heading=tuple((axis.name, axis.values[0]) for axis in _alike(axes, rows)) if aside else (),
        rows=("",) * math.ceil(len(rows) / max(1, wide)),
        columns=("",) * min(wide, len(rows)),
        cells=dict(zip(places, rows.tolist(), strict=True)),
        captions=captions,
    )


def _by_part(blocks: Sequence[Block]) -> list[list[Block]]:
    return [list(those) for _, those in itertools.groupby(blocks, key=lambda block: block.part)]


def _last_values(blocks: Sequence[Block]) -> int:
    """How many values the last axis of headings has that differs."""
    counts = [len(set(pairs)) for pairs in zip(*(block.heading for block in blocks if not block.captions), strict=True)]
    return next((count for count in reversed(counts) if count > 1), 1)


def _among(columns: Sequence[Column], made: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows all of whose values some row has that was made."""
    found = np.full(len(made), bool(columns))
    for column in columns:
        codes = column.codes[: len(made)]
        used = np.zeros(len(column.values), dtype=bool)
        used[codes[made]] = True
        found &= used[codes]
    return found


def _alike(columns: Sequence[Column], rows: Places) -> list[Column]:
    return [column for column in (_of_rows(each, rows) for each in columns) if len(column.values) == 1]


def _differing(columns: Sequence[Column], rows: Places) -> list[Column]:
    return [column for column in (_of_rows(each, rows) for each in columns) if len(column.values) > 1]


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


def _spans(count: int, most: int) -> list[range]:
    parts = math.ceil(count / max(1, most))
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
