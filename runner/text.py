"""Texts for people: shortened, printable, and sizes in units."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_SHOWN = 8


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def width(text: str) -> int:
    """Columns that a terminal takes for a text: two for a wide character, none for one that joins the last."""
    from rich.cells import cell_len

    return cell_len(text)


def name_some(names: Sequence[str]) -> str:
    """A list of names for a message, the first few of them."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def shorten(text: str, length: int = 60) -> str:
    """A text cut for a message."""
    return text if len(text) <= length else text[: length - 3] + "..."


def show_size(number: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
