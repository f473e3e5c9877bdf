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
from rich.table import Table

from runner.bench import Report
from runner.contact_sheet import INK, PAPER, SOFT, to_png
from runner.files import atomic_write, writing_to

GIB = 1 << 30
HEADS = (
    "contender", "type", "rows", "pictures/s", "to stock", "memory GiB", "loading GiB", "ready s", "first s",
    "PSNR dB", "largest", "own time", "loads",
)  # fmt: skip
LEGEND = (
    "to stock: the median of the rounds' ratios of speed. memory: the highest while rendering, on a CPU of the "
    "process; loading: of the process before. ready, first: seconds from the start of the process until the model is "
    "loaded and warm, and until the first picture is in its file. PSNR, largest difference of a byte: from "
    "stock_full's pictures. own time: the runner's time outside of the model's stages. loads: of each part of a "
    "streamed UNet in a step."
)
WIDTH, HEIGHT, EDGE = 900, 560, 80  # of the picture, in pixels
DOT, TICKS = 5, 5
OURS = "#c2410c"


def as_json(report: Report) -> bytes:
    """The report as one JSON document; an infinite PSNR is null, and its largest difference 0."""
    return orjson.dumps(dataclasses.asdict(report))


def print_table(report: Report, console: Console) -> None:
    """Prints the report for people."""
    table = Table(*(HEADS[:1]), *HEADS[1:], title=title(report))
    for row in report.rows:
        table.add_row(*cells(row))
    console.print(table)
    console.print(LEGEND, highlight=False)


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
    bench, machine = report.bench, report.machine
    pictures = f"{bench['images']} pictures of {bench['size']}x{bench['size']}, {bench['steps']} steps"
    return f"{bench['name']}: {pictures}, {bench['rounds']} rounds, on {machine['device_name']}"


def to_markdown(report: Report) -> str:
    """The table with the machine, the versions and the command, for a document."""
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
        f"| {' | '.join(HEADS)} |",
        f"|{'---|' * len(HEADS)}",
        *(f"| {' | '.join(cells(row))} |" for row in report.rows),
        "",
        LEGEND,
        "",
    ]
    return "\n".join(lines)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table as text; a contender that failed says why."""
    if row["problem"]:
        problem = " ".join(row["problem"].replace("|", "/").split())
        return [row["name"], f"failed: {problem}", *[""] * (len(HEADS) - 2)]
    values = (
        (row["rows"], "{}"),
        (row["pictures_per_second"], "{:.3g}"),
        (row["ratio"], "{:.2f}"),
        (_gib(row["peak_bytes"]), "{:.2f}"),
        (_gib(row["load_peak_bytes"]), "{:.2f}"),
        (row["ready_seconds"], "{:.1f}"),
        (row["first_picture_seconds"], "{:.1f}"),
        (row["psnr"], "{:.1f}"),
        (row["largest_difference"], "{}"),
        (row["overhead"], "{:.1%}"),
        (row["loads_per_step"], "{:.2f}"),
    )
    return [row["name"], row["dtype"], *("" if value is None else form.format(value) for value, form in values)]


def _gib(number: int | None) -> float | None:
    return None if number is None else number / GIB


# ---- the picture


def draw(report: Report) -> Image.Image:
    """Speed (upwards) against memory (to the right), a dot for each contender: the best place is the upper left."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    rows = [row for row in report.rows if row["pictures_per_second"]]
    points = [(row["peak_bytes"] / GIB, row["pictures_per_second"]) for row in rows]
    across, up = (scale([point[axis] for point in points]) for axis in (0, 1))
    _draw_axes(pen, across, up)
    taken: list[tuple[float, ...]] = []
    for row, (memory, speed) in zip(rows, points, strict=True):
        x, y = _place(memory, speed, across, up)
        colour = SOFT if row["name"].startswith("stock") else OURS
        pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
        taken.append((x - DOT, y - DOT, x + DOT, y + DOT))
        _write_beside(pen, x, y, row["name"], colour, taken)
    pen.text((EDGE, 14), title(report), font=_font(16), fill=INK)
    return image


def scale(values: Sequence[float]) -> list[float]:
    """Round numbers from 0 to the first one above all values, for the marks of an axis."""
    rough = max(values, default=1.0) / TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    return [step * index for index in range(math.floor(max(values, default=1.0) / step) + 2)]


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


def _write_beside(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, taken: list[tuple[float, ...]]
) -> None:
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
