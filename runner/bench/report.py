"""What `bench` found: a table for the terminal, one for a document, and JSON.

print_table(report)
files = write_files(report, Path("outputs/bench-emoji"))  # bench.json, bench.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Column, Table

from runner.bench.bench import Report, baseline
from runner.files import atomic_write, writing_to

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
