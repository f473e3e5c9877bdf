"""Rows below titles on a terminal: folded to its width, and whole in a file or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from runner import terminal
from runner.text import visible

PIPE_WIDTH = 10_000  # where nothing is to be folded
Row = Sequence[str]


def print_plainly(shown: Callable[[Console], None]) -> None:
    """Prints what is shown on a console: folded to a terminal's width, and whole in a file or a pipe."""
    folded = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = terminal.console(stderr=False, width=None if folded else PIPE_WIDTH)
    with console.capture() as captured:
        shown(console)
    lines = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    console.file.write(lines)
    console.file.flush()


def section(console: Console, title: str, rows: Iterable[Row], style: str = "bold") -> None:
    """Shows rows below a title, and nothing where there are none."""
    cells = list(rows)
    if not cells:
        return
    if title:
        console.print()
        console.print(Text(title, style=style))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan")
    for row in cells:
        table.add_row(*(Text(visible(cell), overflow="fold") for cell in row))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
