"""Pictures that a manifest names by the folder: paths, patterns, and lists of both.

A path that exists is that file, whatever its name looks like. Else `*`, `?` and `[...]` stand for parts of a name, and
`**` for any folders. What a pattern finds is sorted as people count (img2 before img10), without hidden files.

    read_inputs(frame, "init", node)  # photos/*.jpg
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from runner.errors import every
from runner.images.inits import Init
from runner.manifest.grid import Axis
from runner.manifest.nodes import Node, wrap
from runner.manifest.places import MAGIC, PICTURES, Frame, find_inside, find_picture
from runner.manifest.rules import MOST_VALUES

ANY_FOLDERS = "**"
DIGITS = re.compile("([0-9]+)")

Inputs = tuple[Init, ...]


def read_input(frame: Frame, key: str, node: Node) -> Init | Inputs:
    """A job's own value: one picture by its path, or those of a list or of a pattern."""
    if isinstance(node.value, list) or _is_pattern(frame, node):
        return read_inputs(frame, key, node)
    return find_picture(key, node, frame.folder, frame.allow_outside)


def read_inputs(frame: Frame, key: str, node: Node) -> Inputs:
    """The pictures of a list of paths and patterns, or of one alone; all of them are examined.

    Raises:
        ManifestError: a pattern finds nothing, a file is no picture, or there are too many.
    """
    entries = node.items() if isinstance(node.value, list) else [node]
    named = list(itertools.chain.from_iterable(every(lambda entry: _names(frame, key, entry), entries)))
    if len(named) > MOST_VALUES:
        raise node.error(f"{key}: {len(named)} pictures; the most is {MOST_VALUES}")
    found = every(lambda each: find_picture(key, each, frame.folder, frame.allow_outside), named)
    shared = Counter(init.path.name for init in found)
    return tuple(
        replace(init, label=each.written) if shared[init.path.name] > 1 else init
        for init, each in zip(found, named, strict=True)
    )


def listed_axes(said: Mapping[str, Any], places: Mapping[str, Node]) -> list[Axis]:
    """The axis of the pictures that a job lists, `init` and `mask` walked together; none where it lists none."""
    columns = {key: said[key] for key in listed(said)}
    if len(set(map(len, columns.values()))) > 1:
        lengths = " and ".join(f"{key} has {len(values)}" for key, values in columns.items())
        raise places["mask"].error(f"the pictures are walked together and need the same number; {lengths}")
    return [Axis(columns=columns, named=True)] if columns else []


def listed(said: Mapping[str, Any]) -> list[str]:
    """The keys of which a job lists several pictures, or a pattern."""
    return [key for key in PICTURES if isinstance(said.get(key), tuple)]


def _is_pattern(frame: Frame, node: Node) -> bool:
    return bool(MAGIC.search(node.text())) and not os.path.lexists(frame.folder / node.text())


def _names(frame: Frame, key: str, node: Node) -> list[Node]:
    """What an entry names, each under its own name at the entry's place; a path alone names itself."""
    if not _is_pattern(frame, node):
        return [node]
    find_inside(node, frame.folder, frame.allow_outside)  # nothing beyond is even looked at
    try:
        found = list(itertools.islice(_matches(frame.folder, PurePath(node.text())), MOST_VALUES + 1))
    except ValueError as error:
        raise node.error(f"{key}: {node} is not a pattern ({error})") from None
    if not found:
        raise node.error(f"{key}: {node} finds no file")
    if len(found) > MOST_VALUES:
        raise node.error(f"{key}: {node} finds more than {MOST_VALUES} files")
    return [wrap(name, node.location) for name in sorted(found, key=natural)]


def _matches(folder: Path, pattern: PurePath) -> Iterator[str]:
    """The files that a pattern finds, named relative to the folder unless the pattern isn't."""
    parts = pattern.parts
    plain = len(list(itertools.takewhile(lambda part: not MAGIC.search(part), parts)))
    base, sought = folder.joinpath(*parts[:plain]), parts[plain:]
    if os.pardir in sought:
        raise ValueError(f"'{os.pardir}' behind a '*'")
    if sought[-1] == ANY_FOLDERS:
        sought = *sought, "*"
    for path in base.glob(str(PurePath(*sought))):
        if not _is_hidden(path.relative_to(base).parts) and not path.is_dir():
            yield str(path if pattern.is_absolute() else path.relative_to(folder))


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def natural(name: str) -> list[tuple[list[tuple[int, int]], str]]:
    """What names are sorted by: numbers in them by their value, letters of either case alike."""
    return [(list(_pieces(part)), part) for part in PurePath(name).parts]


def _pieces(part: str) -> Iterator[tuple[int, int]]:
    """A character, or a whole number where a digit would be."""
    for piece in DIGITS.split(part.casefold()):
        if DIGITS.fullmatch(piece):
            yield ord("0"), int(piece)
        else:
            yield from ((ord(character), 0) for character in piece)
