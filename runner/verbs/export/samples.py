"""What is told of an exported picture: its caption, its record, and the few values that tables have columns for.

A form of dataset is a `Form`: how its shards are named, and how one is made of its samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.record import part

# Columns beside the picture, and the type of each; all have a value in every row, as typed tables want it.
COLUMNS: Mapping[str, type] = {
    "text": str, "id": str, "seed": int, "width": int, "height": int, "steps": int, "scale": float, "sampler": str,
    "negative": str, "model": str, "record": str,
}  # fmt: skip
LARGEST = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A picture as it is exported: `name` is its file's, `data` the file's bytes, `line` its record's line."""

    key: str
    suffix: str
    data: bytes
    line: bytes
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.key + self.suffix

    @property
    def caption(self) -> str:
        """The prompt as it was written to the model."""
        return str(_typed(part(self.record, "item").get("prompt"), str))

    def columns(self) -> dict[str, Any]:
        """The values of `COLUMNS`."""
        item, model = part(self.record, "item"), part(self.record, "model")
        values = {**item, "text": self.caption, "id": self.record["id"], "model": model.get("name")}
        typed = {key: _typed(values.get(key), kind) for key, kind in COLUMNS.items()}
        return typed | {"record": self.line.decode()}


def _typed(value: Any, kind: type) -> Any:
    """The value where it is of its column's type; a record may have been altered."""
    if kind is float and type(value) is int:
        value = float(value)
    fits = type(value) is kind and (type(value) is not int or -LARGEST <= value < LARGEST)
    return value if fits else kind()


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form of dataset.

    `name` is the file that makes a shard whole, by its number; `make` makes a shard's files, that one last. `file` is
    the name of a picture's own file in a shard, where pictures have one. `own` matches the name of every file that such
    an export may have. `kind` is what the index says of itself first.
    """

    name: Callable[[int], str]
    make: Callable[[int, Iterable[Sample]], Iterator[tuple[str, bytes]]]
    own: re.Pattern[str]
    kind: Mapping[str, Any]
    file: Callable[[int, str], str] | None = None
