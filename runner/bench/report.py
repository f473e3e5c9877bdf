"""What `bench` found: a table for the terminal, a table for a document, and a picture of speed against memory.

print_table(report)
files = write_files(report, Path("outputs/bench-emoji"))  # bench.json, bench.md, bench.png
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Column, Table

from runner.bench.bench import Report, baseline
from runner.files import atomic_write, writing_to
from runner.report.sheet import INK, PAPER, SOFT, to_png

Box = tuple[float, float, float, float]
Columns = Sequence[tuple[str, str, str, int | None]]
GIB = 1 << 30
# Head, key of a row, format, and what a value is divided by. The two tables each begin with the contender's name.
COMPARED = (
    ("pictures/s", "pictures_per_second", "{:.3g}", None),
    ("to stock", "ratio", "{:.2f}", None),
    ("memory GiB", "peak_bytes", "{:.2f}", GIB),
    ("first s", "first_picture_seconds", "{:.1f}", None),
    ("PSNR dB", "psnr", "{:.1f}", None),
    ("largest", "largest_difference", "{}", None),
)
DETAILS = (
    ("type", "dtype", "{}", None),
    ("rows", "rows", "{}", None),
    ("ready s", "ready_seconds", "{:.1f}", None),
    ("loading GiB", "load_peak_bytes", "{:.2f}", GIB),
    ("process GiB", "process_peak_bytes", "{:.2f}", GIB),
    ("own time", "overhead", "{:.1%}", None),
    ("loads", "loads_per_step", "{:.2f}", None),
)
LEGEND = (
    "to stock: the median of the rounds' ratios of speed to {baseline}'s. memory: the highest while rendering, on a "
    "CPU the process's. first: from the start of the process until the first picture is in its file. PSNR, and the "
    "largest difference of a byte: from stock_full's pictures.",
    "rows: of a UNet call. ready: from the start of the process until the model is loaded and has made a step. "
    "loading, process: the process's memory before and while rendering. own time: the share of the time that isn't "
    "the model's. loads: of each part of a streamed UNet in a step.",
)
WIDTH, HEIGHT, EDGE = 900, 560, 80  # of the picture, in pixels
DOT, TICKS = 5, 5
OURS = "#c2410c"


def as_json(report: Report) -> bytes:
    """The report as one JSON document; an infinite PSNR is null, and its largest difference 0."""
    return orjson.dumps(dataclasses.asdict(report))


def print_table(report: Report, console: Console) -> None:
    """Prints the report for people."""
    console.print(title(report), highlight=False)
    for columns, legend in zip((COMPARED, DETAILS), legends(report), strict=True):
        table = Table(Column("contender", no_wrap=True), *(Column(head, justify="right") for head, *_ in columns))
        for row in report.rows:
            if not row["problem"]:
                table.add_row(row["name"], *cells(row, columns))
        console.print(table)
        console.print(legend, highlight=False)
    for problem in report.problems:
        console.print(f"failed: {problem}", markup=False, highlight=False, soft_wrap=True)


def legends(report: Report) -> list[str]:
    """What the columns of the two tables say."""
    return [legend.format(baseline=baseline(report.machine["device"])) for legend in LEGEND]


def write_files(report: Report, folder: Path) -> list[Path]:
    """Writes the report into its folder in all forms."""
    contents = {
        "bench.json": as_json(report),
        "bench.md": to_markdown(report).encode(),
        "bench.png": to_png(draw(report)),
    }
    with writing_to(folder):
        for name, content in contents.items():
            atomic_write(folder / name, content)
    return [folder / name for name in contents]


def title(report: Report) -> str:
    """What was measured, in a line."""
    bench = report.bench
    pictures = f"{bench['images']} pictures of {bench['size']}x{bench['size']}, {bench['steps']} steps"
    return f"{bench['name']}: {pictures}, rounds: {bench['rounds']}, on {report.machine['device_name']}"


def to_markdown(report: Report) -> str:
    """The tables with the machine, the versions and the command, for a document."""
    machine = report.machine
    lines = [
        f"### {title(report)}",
        "",
        f"`{report.command}`",
        "",
        f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / GIB:.0f} GiB, "
        f"{machine['threads']} threads, device {machine['device']}; "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "",
    ]
    for columns, legend in zip((COMPARED, DETAILS), legends(report), strict=True):
        lines += [f"| contender | {' | '.join(head for head, *_ in columns)} |", f"|---|{'--:|' * len(columns)}"]
        lines += [f"| {row['name']} | {' | '.join(cells(row, columns))} |" for row in report.rows if not row["problem"]]
        lines += ["", legend, ""]
    lines += [f"- failed: {' '.join(problem.split())}" for problem in report.problems]
    return "\n".join(lines).rstrip() + "\n"


def cells(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """A row's values as text; what there is none of is empty."""
    return [_cell(row[key], form, unit) for _, key, form, unit in columns]


def _cell(value: Any, form: str, unit: int | None) -> str:
    if value is None:
        return ""
    return form.format(value / unit if unit else value)


# ---- the picture


def draw(report: Report) -> Image.Image:
    """Speed (upwards) against memory (to the right), a dot for each contender: the best place is the upper left."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    rows = [row for row in report.rows if row["pictures_per_second"]]
    points = [(row["peak_bytes"] / GIB, row["pictures_per_second"]) for row in rows]
    across, up = (scale([point[axis] for point in points]) for axis in (0, 1))
    _draw_axes(pen, across, up)
    dots = [_place(*point, across, up) for point in points]
    taken: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in dots]
    for row, (x, y), box in zip(rows, dots, list(taken), strict=True):
        colour = SOFT if row["name"].startswith("stock") else OURS
        pen.ellipse(box, fill=colour)
        _write_beside(pen, x, y, row["name"], colour, taken)
    pen.text((EDGE, 14), title(report), font=_font(16), fill=INK)
    return image


def scale(values: Sequence[float]) -> list[float]:
    """Round numbers from 0 to the first one above all values, for the marks of an axis."""
    largest = max(values, default=1.0)
    magnitude = 10.0 ** math.floor(math.log10(largest / TICKS))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= largest / TICKS)
    return [step * index for index in range(math.floor(largest / step + 1e-9) + 2)]


def _place(memory: float, speed: float, across: Sequence[float], up: Sequence[float]) -> tuple[float, float]:
    x = EDGE + memory / across[-1] * (WIDTH - 2 * EDGE)
    return x, HEIGHT - EDGE - speed / up[-1] * (HEIGHT - 2 * EDGE)


def _draw_axes(pen: ImageDraw.ImageDraw, across: Sequence[float], up: Sequence[float]) -> None:
    for mark in across:
        x, y = _place(mark, 0, across, up)
        pen.line((x, y, x, y + 5), fill=SOFT)
        pen.text((x, y + 8), f"{mark:.4g}", font=_font(12), fill=SOFT, anchor="mt")
    for mark in up:
        x, y = _place(0, mark, across, up)
        pen.line((x, y, WIDTH - EDGE, y), fill="#eeece8")
        pen.text((x - 8, y), f"{mark:.4g}", font=_font(12), fill=SOFT, anchor="rm")
    pen.text((WIDTH - EDGE, HEIGHT - 40), "memory, GiB", font=_font(14), fill=INK, anchor="rm")
    pen.text((EDGE, EDGE - 24), "pictures a second", font=_font(14), fill=INK, anchor="lm")


def _write_beside(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, taken: list[Box]) -> None:
    """A label at the first side of a dot where nothing is written yet; lower and lower if every side is taken."""
    sides = [("lm", 10, 0), ("rm", -10, 0), ("mb", 0, -9), ("mt", 0, 9)]
    lower = [("lm", 10, 15 * line) for line in range(1, 20)]
    for anchor, right, down in [*sides, *lower]:
        box = pen.textbbox((x + right, y + down), text, font=_font(13), anchor=anchor)
        free = all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1] for b in taken)
        if free and box[0] > EDGE and box[2] < WIDTH:
            break
    taken.append(box)
    pen.text((x + right, y + down), text, font=_font(13), fill=colour, anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
