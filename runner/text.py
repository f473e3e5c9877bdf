"""Texts for people: shortened, printable, and sizes in units."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

NAMES_SHOWN = 8
STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories of Unicode
PLAIN = frozenset("\n\t\u200c\u200d")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey replaced by U+FFFD, and tabs by spaces."""
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def visible(text: str) -> str:
    """The text with what steers a terminal or turns the direction of reading written as JSON's escapes.

    Line ends and tabs stay, and so do the joiners of emoji and of Persian.
    """
    if text.isprintable():
        return text
    return "".join(
        escape(char) if char not in PLAIN and unicodedata.category(char) in STEERING else char for char in text
    )


def escape(char: str) -> str:
    """A character as JSON's escape: two for one beyond the first plane."""
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


def width(text: str) -> int:
    """The columns that a text takes on a terminal: two for a wide character, none for a combining one."""
    from rich.cells import cell_len

    return cell_len(text)


def name_some(names: Sequence[str]) -> str:
    """The first names of a list, for a message, and the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def shorten(text: str, length: int = 60) -> str:
    """A text, cut to at most `length` characters for a message."""
    return text if len(text) <= length else text[: length - 3] + "..."


def show_size(number: float) -> str:
    """A number of bytes with a unit, for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
