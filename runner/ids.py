"""Ids of items that a file lists: one a line, or a JSON list of texts; the first 8 digits or more are enough.

Blank lines and lines that begin with `#` say nothing. A short id stands for every item whose id begins with it. Whoever
goes through items asks `take` about each, and then `note` which ids are those of none.

    ids = read_ids("favourites.txt")
    chosen = [item for item in items if ids.take(item_id(item))]
    note = ids.note("the manifest")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from runner.errors import Location, ManifestError, every
from runner.files import expanded
from runner.text import name_some, shorten

DIGITS = 64
FEWEST = 8
GIVEN = re.compile(rf"[0-9a-f]{{{FEWEST},{DIGITS}}}")
WHOLE = re.compile(rf"[0-9a-f]{{{DIGITS}}}")


def is_id(text: str) -> bool:
    """Whether a text is a whole id, as a record should have it."""
    return WHOLE.fullmatch(text) is not None


class Ids:
    """The ids of a file, and which of them were met."""

    def __init__(self, path: Path, given: Iterable[str]) -> None:
        self._path = path
        self._unmet = dict.fromkeys(given)  # in the file's order
        self._given = frozenset(self._unmet)
        self._lengths = sorted({len(each) for each in self._given})

    def take(self, identity: str) -> bool:
        """Whether an item is among those listed."""
        found = [start for length in self._lengths if (start := identity[:length]) in self._given]
        for each in found:
            self._unmet.pop(each, None)
        return bool(found)

    def note(self, place: str) -> str:
        """What to say of ids that no item has; `place` is where the items come from.

        Raises:
            ManifestError: no item has any of them.
        """
        unmet = list(self._unmet)
        if len(unmet) == len(self._given):
            raise ManifestError(f"none of its {len(unmet)} ids is that of an item of {place}", Location(self._path))
        return f"{self._path}: {len(unmet)} ids are of no item of {place}: {name_some(unmet)}" if unmet else ""


def read_ids(file: str) -> Ids:
    """The ids of a file.

    Raises:
        ManifestError: it can't be read, or something in it is no id.
    """
    path = expanded(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name, or no UTF-8
        raise ManifestError(f"can't be read: {getattr(error, 'strerror', None) or error}", Location(path)) from None
    lines = _of_json(path, text) if text.lstrip().startswith("[") else list(enumerate(text.splitlines(), start=1))
    given = [(line, each.strip()) for line, each in lines if each.strip() and not each.lstrip().startswith("#")]
    if not given:
        raise ManifestError("lists no ids", Location(path))

    def check(numbered: tuple[int, str]) -> str:
        line, each = numbered
        if not GIVEN.fullmatch(each.lower()):
            message = f"'{shorten(each)}' is no id: should be {FEWEST} to {DIGITS} hexadecimal digits"
            raise ManifestError(message, Location(path, line, 1 if line else 0))
        return each.lower()

    return Ids(path, every(check, given))


def _of_json(path: Path, text: str) -> list[tuple[int, str]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is no list of ids, nor JSON: {error}", Location(path)) from None
    if not all(isinstance(each, str) for each in found):
        raise ManifestError("is JSON, but no list of texts", Location(path))
    return [(0, each) for each in found]
