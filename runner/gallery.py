"""The report of a run folder: `gallery.html`, which opens without a server, and `grid.png`, a contact sheet.

Both are made anew from the records and the pictures, so they can be made at any time, during a run as well. Nothing
here changes a record or a picture; what is missing or has failed is shown as such.
"""

from __future__ import annotations

import html
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

from runner.files import atomic_write, writing_to
from runner.records import iterate_records

SMALL = 128  # pixels; up to it a picture is enlarged in whole multiples, each of its pixels a square
SMALL_SHOWN, LARGE_SHOWN = 192, 224  # pixels of a card's longer side
MAX_PIXELS, MAX_SIDE, MAX_PICTURES = 64_000_000, 400, 10_000  # of the contact sheet
GAP, MARGIN, NARROWEST, SMALLEST = 6, 24, 480, 12  # of the contact sheet, in pixels
MOST_BLANK = 3  # cells for each picture; a matrix with more holes than that is shown as a plain row of pictures
MOST_LETTERS = 400  # of a label
PAPER, INK, SOFT, BLANK = "#ffffff", "#1d1c1a", "#85817a", "#eeece8"
UNSHOWN = frozenset({"prompt", "parts", "seed", "number", "axes"})  # shown in their own way, or of no interest
# HTML allows no other control characters than tabs and line ends.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\t"), ord("\n")}, "\ufffd")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryFiles:
    """What was made, and of how many items."""

    html: Path
    grid: Path
    items: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One item as the report shows it; `file` is None where there is no picture, and `problem` says why."""

    item: dict[str, Any]
    model: str
    path: str
    file: Path | None
    problem: str
    failed: bool

    @property
    def prompt(self) -> str:
        return str(self.item.get("prompt", ""))

    @property
    def size(self) -> tuple[int, int]:
        sides = (self.item.get("width"), self.item.get("height"))
        width, height = (side if isinstance(side, int) and side > 0 else 512 for side in sides)
        return width, height

    def settings(self) -> dict[str, str]:
        """What a reader wants to know of it beside prompt and seed."""
        values = {key: value for key, value in self.item.items() if key not in UNSHOWN and value not in ("", None)}
        width, height = values.pop("width", "?"), values.pop("height", "?")
        return {"model": self.model, "size": f"{width}x{height}", **{key: _text(values[key]) for key in values}}


def build(folder: Path) -> GalleryFiles:
    """Make `gallery.html` and `grid.png` of a run folder."""
    pictures = read_pictures(folder)
    page, grid = folder / "gallery.html", folder / "grid.png"
    with writing_to(folder):
        atomic_write(page, render_page(folder.resolve().name, pictures).encode("utf-8", "replace"))
        atomic_write(grid, _png(render_grid(pictures)))
    return GalleryFiles(html=page, grid=grid, items=len(pictures), failed=sum(picture.failed for picture in pictures))


def read_pictures(folder: Path) -> list[Picture]:
    """The newest record of each item, in the order of the manifest."""
    newest = {record["id"]: _picture(folder, record) for record in iterate_records(folder)}
    return sorted(newest.values(), key=lambda picture: _number(picture.item))


def _picture(folder: Path, record: dict[str, Any]) -> Picture:
    item, model, error = (_mapping(record.get(key)) for key in ("item", "model", "error"))
    path, failed = str(record.get("image") or ""), record["status"] == "failed"
    file = None if failed else _file_within(folder, path)
    problem = "" if file else "missing: " + (path or "no file was recorded")
    if failed:
        problem = f"failed: {error.get('class', 'error')}: {error.get('message', 'unknown')}"
    model_name = str(model.get("name", "?"))
    return Picture(item=item, model=model_name, path=path, file=file, problem=problem, failed=failed)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _file_within(folder: Path, path: str) -> Path | None:
    """The picture's file, if it is there; a path that leaves the run folder is nobody's picture."""
    parts = PurePosixPath(path)
    if not path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
        return None
    file = folder / parts
    return file if file.is_file() else None


def _number(item: dict[str, Any]) -> float:
    number = item.get("number")
    return number if isinstance(number, int) else math.inf


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value)
    return json.dumps(value, ensure_ascii=False)


# The page.


def render_page(title: str, pictures: Sequence[Picture]) -> str:
    """The whole page as HTML: the settings that all share once, at each picture those that differ."""
    template = Template(resources.files("runner").joinpath("gallery.html.in").read_text("utf-8"))
    common = _common([picture.settings() for picture in pictures])
    failed = sum(picture.failed for picture in pictures)
    counts = f"{len(pictures):,} items" + (f", {failed:,} failed" if failed else "")
    sections = "\n".join(_section(prompt, group, common) for prompt, group in _by_prompt(pictures))
    shared = " · ".join(f"{key} {value}" for key, value in common.items())
    return template.substitute(title=_safe(title), counts=counts, common=_safe(shared), sections=sections)


def _common(settings: Sequence[dict[str, str]]) -> dict[str, str]:
    if not settings:
        return {}
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}


def _by_prompt(pictures: Iterable[Picture]) -> Iterator[tuple[str, list[Picture]]]:
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.prompt, []).append(picture)
    return iter(groups.items())


def _section(prompt: str, pictures: Sequence[Picture], common: dict[str, str]) -> str:
    cards = "\n".join(_card(picture, common) for picture in pictures)
    heading = f'<h2>{_safe(prompt)}<span class="count">{len(pictures):,}</span></h2>'
    return f'<section data-prompt="{_safe(prompt)}">{heading}<div class="sheet">\n{cards}\n</div></section>'


def _card(picture: Picture, common: dict[str, str]) -> str:
    seed, settings = _text(picture.item.get("seed")), picture.settings()
    facts = [("seed", seed), *settings.items(), ("number", _text(picture.item.get("number"))), ("file", picture.path)]
    facts += [("problem", picture.problem)] if picture.problem else []
    differing = " · ".join(f"{key} {value}" for key, value in settings.items() if common.get(key) != value)
    (width, height), shown = picture.size, _shown_width(*picture.size)
    kind = "" if picture.file else ' class="none"' if picture.failed else ' class="none missing"'
    style = f"--w:{shown}px;--r:{width}/{height}"
    return (
        f'<figure{kind} style="{style}" data-facts="{_safe(json.dumps(facts))}"'
        f' data-item="{_safe(json.dumps(picture.item))}">{_link(picture)}'
        f"<figcaption><span><b>seed {_safe(seed)}</b> {_safe(differing)}</span>"
        f'<button type="button" title="Copy the item as JSON">copy</button></figcaption></figure>'
    )


def _link(picture: Picture) -> str:
    if picture.file is None:
        return f'<a tabindex="0">{_safe(picture.problem)}</a>'
    width, height = picture.size
    address, pixels = quote(picture.path, errors="replace"), ' class="pixels"' if max(width, height) <= SMALL else ""
    return (
        f'<a href="{address}"><img{pixels} src="{address}" width="{width}" height="{height}" loading="lazy"'
        f' alt="{_safe(picture.prompt)}"></a>'
    )


def _shown_width(width: int, height: int) -> int:
    longer = max(width, height)
    if longer <= SMALL:
        return width * math.ceil(SMALL_SHOWN / longer)
    return max(SMALL, round(width * LARGE_SHOWN / longer))


def _safe(text: str) -> str:
    """Text for HTML, attributes included."""
    return html.escape(text.translate(CONTROLS), quote=True)


# The contact sheet.


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


def render_grid(pictures: Sequence[Picture]) -> Image.Image:
    """The contact sheet: rows are the first axis, columns all the others; without two axes a plain square."""
    sheet = _arrange(pictures)
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
    footer = _footer(pictures, len(placed))
    _write(draw, (MARGIN, image.height - MARGIN - 30), footer, _font(12), image.width - 2 * MARGIN, 2, SOFT)
    return image


def _arrange(pictures: Sequence[Picture]) -> Sheet:
    axes = _axes(pictures)
    values = {id(picture): tuple(_value(picture, axis) for axis in axes) for picture in pictures}
    rows, columns = _rows_and_columns(list(values.values()))
    if len(axes) < 2 or len(rows) * len(columns) > MOST_BLANK * len(pictures):
        rows, columns = [], []
    columns = columns[:MAX_SIDE]
    rows = rows[: min(MAX_SIDE, MAX_PICTURES // max(1, len(columns)))]
    cells, loose = _place(pictures, values, rows, columns) if rows else ({}, list(pictures))
    loose = loose[: MAX_PICTURES - len(cells)]
    common = _common([picture.settings() for picture in pictures])
    return Sheet(
        rows=[_label(axes[0], row) for row in rows],
        columns=[tuple(_label(*pair) for pair in zip(axes[1:], those, strict=True)) for those in columns],
        cells=cells,
        loose=loose,
        captions=[_caption(picture, axes or ["prompt", "seed"], common) for picture in loose],
        wide=min(MAX_SIDE, max(1, len(columns), math.ceil(math.sqrt(len(loose))))),
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
    named = dict.fromkeys(axis for picture in pictures for axis in _mapping(picture.item.get("axes")))
    names = dict.fromkeys([*(() if "prompt" in named else ("prompt",)), *named, "seed"])
    return [name for name in names if len({_value(picture, name) for picture in pictures}) > 1]


def _value(picture: Picture, axis: str) -> str:
    return _text(_mapping(picture.item.get("axes")).get(axis, picture.item.get(axis, "")))


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
    swept = {axis: _value(picture, axis) for axis in reversed(axes)}
    return " · ".join(_label(key, value) for key, value in (others | swept).items())


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
    if picture.file is None:
        return None
    try:
        with Image.open(picture.file, formats=("PNG", "JPEG")) as image:
            image.draft("RGB", box)  # a JPEG is decoded no larger than needed
            factor = min(box[0] / image.width, box[1] / image.height)
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            whole = factor >= 1 and factor == int(factor)
            return image.convert("RGB").resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
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


def _footer(pictures: Sequence[Picture], shown: int) -> str:
    count = f"{shown:,} items" if shown == len(pictures) else f"the first {shown:,} of {len(pictures):,} items"
    common = _common([picture.settings() for picture in pictures])
    return " · ".join([count, *(f"{key} {value}" for key, value in common.items())])


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
    """Text in at most so many lines, cut with an ellipsis; at the bottom of a height if one is given."""
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


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()
