"""A run's items as its reports show them: each with its picture, or with the reason why there is none.

Everything is read from the records, and nothing is changed; no picture is opened, only looked for. Here is what all
reports share: the sizes in which they show pictures, and how they write a value.

    for picture in read_pictures(store_at("outputs/alps")):
        print(picture.path if picture.open else picture.problem, picture.settings())
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from typing import Any

from runner.folder.ledger import iterate_records
from runner.folder.store import Store
from runner.record import FAILED, part

SMALL = 128  # pixels; up to it a picture is enlarged in whole multiples, each of its pixels a square
LARGE_SHOWN = 224  # pixels of the longer side of any other
UNSHOWN = frozenset({"prompt", "parts", "seed", "number", "axes"})  # shown in their own way, or of no interest


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One item as a report shows it; `open` opens its picture, and is None where there is none: `problem` says why."""

    item: dict[str, Any]
    model: str
    path: str
    open: Callable[[], BufferedReader] | None
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

    @property
    def axes(self) -> dict[str, Any]:
        return part(self.item, "axes")

    def settings(self) -> dict[str, str]:
        """What a reader wants to know of it beside prompt and seed."""
        values = {key: value for key, value in self.item.items() if key not in UNSHOWN and value not in ("", None)}
        width, height = values.pop("width", "?"), values.pop("height", "?")
        return {"model": self.model, "size": f"{width}x{height}", **{key: as_text(values[key]) for key in values}}


def read_pictures(store: Store) -> list[Picture]:
    """The newest record of each item, in the order of the manifest."""
    newest = {record["id"]: record for record in iterate_records(store)}
    sizes = store.sizes(_path(record) for record in newest.values() if record["status"] != FAILED)
    pictures = [_picture(store, record, sizes) for record in newest.values()]
    return sorted(pictures, key=lambda picture: _number(picture.item))


def common_settings(pictures: Sequence[Picture]) -> dict[str, str]:
    """What all pictures share, so that it is said once."""
    if not pictures:
        return {}
    settings = [picture.settings() for picture in pictures]
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}


def as_text(value: object) -> str:
    """A value of an item as people write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(as_text(part) for part in value)
    return json.dumps(value, ensure_ascii=False)


def _path(record: Mapping[str, Any]) -> str:
    return str(record.get("image") or "")


def _picture(store: Store, record: Mapping[str, Any], sizes: Mapping[str, int]) -> Picture:
    item, model, error = (part(record, key) for key in ("item", "model", "error"))
    path, failed = _path(record), record["status"] == FAILED
    there = not failed and sizes[path] >= 0
    problem = "" if there else "missing: " + (path or "no file was recorded")
    if failed:
        problem = f"failed: {error.get('class', 'error')}: {error.get('message', 'unknown')}"
    model_name = str(model.get("name", "?"))
    opening = partial(store.open, path) if there else None
    return Picture(item=item, model=model_name, path=path, open=opening, problem=problem, failed=failed)


def _number(item: dict[str, Any]) -> float:
    number = item.get("number")
    return number if isinstance(number, int) else math.inf
