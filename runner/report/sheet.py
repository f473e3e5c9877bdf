"""The contact sheet `grid.png`: every picture of a run, small, in its place among the axes that differ.

The first axis makes the rows, all others the columns; without two axes it is a plain square with captions. A sheet
stays within its limits by smaller pictures, and beyond that by fewer, and then says so. Nothing is read here but the
pictures' files, and nothing is written.

    image = render_grid(read_pictures(Path("outputs/alps")))
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from runner.errors import RunnerError
from runner.report.axes import as_text
from runner.report.pictures import LARGE_SHOWN, SMALL, Picture, common_settings

MAX_PIXELS, MAX_SIDE, MAX_PICTURES = 64_000_000, 400, 10_000
MOST_PIXELS = 1 << 26  # of a picture that is shown
GAP, MARGIN, NARROWEST, SMALLEST = 6, 24, 480, 12  # pixels
CAPTION_ORDER = {"prompt": 0, "seed": 1}
MOST_BLANK = 3  # cells for each picture; a matrix with more holes than that is shown as a plain row of pictures
MOST_LETTERS = 400  # of a label
PAPER, INK, SOFT, BLANK = "#ffffff", "#1d1c1a", "#85817a", "#eeece8"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What goes where: a matrix with labels at its rows and columns, and below it loose pictures with captions."""

    rows: Sequence[str] = ()
    columns: Sequence[tuple[str, ...]] = ()  # a label for each level of the heading
    cells: dict[tuple[int, int], Picture]
    loose: Sequence[Picture]
    captions: Sequence[str]
    wide: int  # loose pictures in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Pixels, all following from the box of one picture."""

    box: tuple[int, int]
    label: Font
    left: int
    level: int
    caption: int

    @property
    def line(self) -> int:
        return _line_height(self.label)


def render_grid(pictures: Sequence[Picture], per_row: int | None = None, *, total: int | None = None) -> Image.Image:
    """The contact sheet: rows are the first axis, columns all the others; without two axes a plain square.

    With `per_row` it is plain as well; that is the number of pictures in a row. `total` is the number of all items, of
    which these are the first; None: these are all.
    """
    sheet = _arrange(pictures, per_row)
    measures = _fit(sheet, pictures)
    image = Image.new("RGB", _sheet_size(sheet, measures), PAPER)
    draw = ImageDraw.Draw(image)
    _draw_labels(draw, sheet, measures)
    placed = [(picture, _corner(place, sheet, measures)) for place, picture in sheet.cells.items()]
    for index, (picture, caption) in enumerate(zip(sheet.loose, sheet.captions, strict=True)):
        x, y = _loose_corner(index, sheet, measures)
        placed.append((picture, (x, y)))
        _write(draw, (x, y + measures.box[1] + 3), caption, measures.label, measures.box[0], 2, SOFT)
    with ThreadPoolExecutor(4) as pool:
        thumbs = pool.map(lambda each: _thumb(each[0], measures.box), placed)
        for (picture, corner), thumb in zip(placed, thumbs, strict=True):
            _draw_picture(image, draw, picture, thumb, corner, measures)
    footer = _footer(pictures, len(placed), max(total or 0, len(pictures)))
    _write(draw, (MARGIN, image.height - MARGIN - 30), footer, _font(12), image.width - 2 * MARGIN, 2, SOFT)
    return image


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


# ---- arranging


def _arrange(pictures: Sequence[Picture], per_row: int | None = None) -> Sheet:
    axes = _axes(pictures)
    values = {id(picture): tuple(_value(picture, axis) for axis in axes) for picture in pictures}
    rows, columns = _rows_and_columns(list(values.values()))
    if per_row or len(axes) < 2 or len(rows) * len(columns) > MOST_BLANK * len(pictures):
        rows, columns = [], []
    columns = columns[:MAX_SIDE]
    rows = rows[: min(MAX_SIDE, MAX_PICTURES // max(1, len(columns)))]
    cells, loose = _place(pictures, values, rows, columns) if rows else ({}, list(pictures))
    loose = loose[: MAX_PICTURES - len(cells)]
    common = common_settings(pictures)
    return Sheet(
        rows=[_label(axes[0], row) for row in rows],
        columns=[tuple(_label(*pair) for pair in zip(axes[1:], those, strict=True)) for those in columns],
        cells=cells,
        loose=loose,
        captions=[_caption(picture, axes or ["prompt", "seed"], common) for picture in loose],
        wide=min(MAX_SIDE, per_row or max(1, len(columns), math.ceil(math.sqrt(len(loose))))),
    )


def _rows_and_columns(values: Sequence[tuple[str, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The values of the first axis, and the combinations of all others, each in the order of the manifest."""
    orders = [{value: place for place, value in enumerate(dict.fromkeys(axis))} for axis in zip(*values, strict=True)]
    if not orders:
        return [], []
    combinations = {value[1:] for value in values}
    return list(orders[0]), sorted(
        combinations, key=lambda those: [o[v] for o, v in zip(orders[1:], those, strict=True)]
    )


def _axes(pictures: Sequence[Picture]) -> list[str]:
    """What differs, from the slowest to the fastest; prompt and seed belong to it whether they were swept or not."""
    named = dict.fromkeys(axis for picture in pictures for axis in picture.axes)
    names = dict.fromkeys([*(() if "prompt" in named else ("prompt",)), *named, "seed"])
    return [name for name in names if len({_value(picture, name) for picture in pictures}) > 1]


def _value(picture: Picture, axis: str) -> str:
    return as_text(picture.axes.get(axis, picture.item.get(axis, "")))


def _place(
    pictures: Sequence[Picture],
    values: dict[int, tuple[str, ...]],
    rows: Sequence[str],
    columns: Sequence[tuple[str, ...]],
) -> tuple[dict[tuple[int, int], Picture], list[Picture]]:
    """Each to its cell. Loose are those whose cell is taken; those beyond the last row or column are left out."""
    row_of, column_of = ({value: index for index, value in enumerate(all_)} for all_ in (rows, columns))
    cells: dict[tuple[int, int], Picture] = {}
    loose = []
    for picture in pictures:
        value = values[id(picture)]
        row, column = row_of.get(value[0]), column_of.get(value[1:])
        if row is None or column is None:
            continue
        if cells.setdefault((row, column), picture) is not picture:
            loose.append(picture)
    return cells, loose


def _label(axis: str, value: str) -> str:
    return value if axis in ("prompt", "negative") else f"{axis} {value}"


def _caption(picture: Picture, axes: Sequence[str], common: dict[str, str]) -> str:
    others = {key: value for key, value in picture.settings().items() if common.get(key) != value and key not in axes}
    swept = {axis: _value(picture, axis) for axis in axes}
    # What a reader looks for comes first, since a caption may be cut short.
    ordered = sorted((swept | others).items(), key=lambda pair: CAPTION_ORDER.get(pair[0], len(CAPTION_ORDER)))
    return " · ".join(_label(key, value) for key, value in ordered)


# ---- measuring


def _fit(sheet: Sheet, pictures: Sequence[Picture]) -> Measures:
    """The largest boxes with which the sheet stays within its limit."""
    width = max((picture.size[0] for picture in pictures), default=64)
    height = max((picture.size[1] for picture in pictures), default=64)
    longer = max(width, height)
    scale = math.ceil(SMALL / longer) if longer <= SMALL else min(1.0, LARGE_SHOWN / longer)
    while True:
        measures = _measures(sheet, (max(1, round(width * scale)), max(1, round(height * scale))))
        if math.prod(_sheet_size(sheet, measures)) <= MAX_PIXELS or longer * scale <= SMALLEST:
            return measures
        scale *= 0.9


def _measures(sheet: Sheet, box: tuple[int, int]) -> Measures:
    label = _font(min(14, max(8, box[0] // 10)))
    line = _line_height(label)
    left = min(220, max(90, box[0])) + 2 * GAP if sheet.rows else 0
    level = line * _lines_needed((those[-1] for those in sheet.columns), label, box[0]) + GAP
    caption = line * _lines_needed(sheet.captions, label, box[0]) + GAP
    return Measures(box=box, label=label, left=left, level=level, caption=caption)


def _lines_needed(texts: Iterable[str], font: Font, width: int) -> int:
    return 2 if any(font.getlength(text[:MOST_LETTERS]) > width for text in texts) else 1


def _sheet_size(sheet: Sheet, measures: Measures) -> tuple[int, int]:
    across = max(len(sheet.columns), min(sheet.wide, len(sheet.loose)))
    width = 2 * MARGIN + measures.left + across * (measures.box[0] + GAP)
    _, bottom = _loose_corner(math.ceil(len(sheet.loose) / sheet.wide) * sheet.wide, sheet, measures)
    return max(NARROWEST, width), bottom + 2 * MARGIN + 30


def _corner(place: tuple[int, int], sheet: Sheet, measures: Measures) -> tuple[int, int]:
    levels = len(sheet.columns[0]) if sheet.columns else 0
    x = MARGIN + measures.left + place[1] * (measures.box[0] + GAP)
    return x, MARGIN + levels * measures.level + place[0] * (measures.box[1] + GAP)


def _loose_corner(index: int, sheet: Sheet, measures: Measures) -> tuple[int, int]:
    x, top = _corner((len(sheet.rows), index % sheet.wide), sheet, measures)
    gap = 2 * GAP if sheet.rows and sheet.loose else 0
    return x, top + gap + index // sheet.wide * (measures.box[1] + measures.caption + GAP)


# ---- drawing


def _draw_labels(draw: ImageDraw.ImageDraw, sheet: Sheet, measures: Measures) -> None:
    for row, text in enumerate(sheet.rows):
        _, y = _corner((row, 0), sheet, measures)
        _write(draw, (MARGIN, y), text, measures.label, measures.left - 2 * GAP, measures.box[1] // measures.line, INK)
    for level in range(len(sheet.columns[0]) if sheet.columns else 0):
        for first, last in _spans(sheet.columns, level):
            x, _ = _corner((0, first), sheet, measures)
            width = (last - first + 1) * (measures.box[0] + GAP) - GAP
            y = MARGIN + level * measures.level
            _write(
                draw, (x, y), sheet.columns[first][level], measures.label, width, 2, INK, bottom=measures.level - GAP
            )
            if last > first:
                draw.line((x, y + measures.level - 4, x + width - 1, y + measures.level - 4), fill=SOFT)


def _spans(columns: Sequence[tuple[str, ...]], level: int) -> list[tuple[int, int]]:
    """First and last of the neighbouring columns that share their labels down to this level."""
    starts = [i for i, those in enumerate(columns) if i == 0 or those[: level + 1] != columns[i - 1][: level + 1]]
    return list(zip(starts, [start - 1 for start in starts[1:]] + [len(columns) - 1], strict=True))


def _thumb(picture: Picture, box: tuple[int, int]) -> Image.Image | None:
    """The picture in the size of its box; None if there is none, or it can't be read."""
    if picture.open is None:
        return None
    try:
        with picture.open() as file, Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:  # no picture of ours, and it would take gigabytes
                return None
            image.draft("RGB", box)  # a JPEG is decoded no larger than needed
            factor = min(box[0] / image.width, box[1] / image.height)
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            whole = factor >= 1 and factor == int(factor)
            return image.convert("RGB").resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
    except RunnerError:  # a store that is down
        raise
    except Exception:  # a broken picture raises almost anything, and must not cost the whole sheet
        return None


def _draw_picture(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Picture,
    thumb: Image.Image | None,
    corner: tuple[int, int],
    measures: Measures,
) -> None:
    (x, y), (width, height) = corner, measures.box
    if thumb is not None:
        image.paste(thumb, (x + (width - thumb.width) // 2, y + (height - thumb.height) // 2))
        return
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=BLANK)
    problem = picture.problem or "unreadable"
    _write(draw, (x + 4, y + 4), problem, measures.label, width - 8, (height - 8) // measures.line, SOFT)


def _footer(pictures: Sequence[Picture], shown: int, total: int) -> str:
    count = f"{shown:,} items" if shown == total else f"the first {shown:,} of {total:,} items"
    common = common_settings(pictures)
    return " · ".join([count, *(f"{key} {value}" for key, value in common.items())])


# ---- text


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _line_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ápgj|")[3]) + 2


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    font: Font,
    width: int,
    most: int,
    colour: str,
    bottom: int = 0,
) -> None:
    """Writes text in at most `most` lines, cut with an ellipsis; at the bottom of a height if one is given."""
    lines = _wrap(text, font, width, most)
    height = _line_height(font)
    top = corner[1] + max(0, bottom - len(lines) * height)
    for index, line in enumerate(lines):
        draw.text((corner[0], top + index * height), line, font=font, fill=colour)


def _wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    # Cut first: a prompt may be a whole book. The font has no accents: a bare letter reads better than an empty box.
    letters = unicodedata.normalize("NFKD", text[:MOST_LETTERS])
    words = "".join(c if c.isprintable() else " " for c in letters if not unicodedata.combining(c)).split()
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most > 0:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_elided(line, font, width) for line in lines[: max(0, most)]]


def _elided(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip(" ,·") + "…" if line else ""
