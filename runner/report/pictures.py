"""A run's items as its reports show them: each with its picture, or with the reason why there is none.

Everything is read from the records, and nothing is changed; no picture is opened, only looked for. Here are the sizes
in which pictures are shown.

    for picture in read_pictures(store_at("outputs/alps")):
        print(picture.path if picture.open else picture.problem, picture.settings())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from typing import Any

from runner.folder.ledger import iterate_records
from runner.folder.store import Store
from runner.record import FAILED, part
from runner.report.axes import as_text
from runner.report.wanted import Wanted

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


def read_pictures(store: Store, most: int | None = None) -> list[Picture]:
    """The newest record of each item that the manifest asks for, in its order; the first `most` of them."""
    wanted = Wanted.load(store) or Wanted.of_records(store)
    places = {identity: place for place, identity in enumerate(dict.fromkeys(wanted.ids))}
    newest: dict[str, Mapping[str, Any]] = {}
    for record in iterate_records(store):
        if places.get(record["id"], math.inf) < (most or math.inf):
            newest[record["id"]] = record
    sizes = store.sizes(_path(record) for record in newest.values() if record["status"] != FAILED)
    return [_picture(store, newest[identity], sizes) for identity in sorted(newest, key=places.__getitem__)]


def common_settings(pictures: Sequence[Picture]) -> dict[str, str]:
    """What all pictures share, so that it is said once."""
    if not pictures:
        return {}
    settings = [picture.settings() for picture in pictures]
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}


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
