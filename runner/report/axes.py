"""What tells the items of a sweep apart: their values by key, as texts, and which of these keys are axes.

A row is one item. A key that only other keys decide (the size of an init picture, the negative of a prompt) is no axis,
but its values are kept. Values stand in the order of their first rows: of items in the manifest's order, its own.

    table = Table()
    for item in items:
        table.add(coordinates(item.to_dict(), item.model.name), named=dict(item.axes))
    for column in table.columns(): ...
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.keys import KEYS
from runner.manifest.loras import ONE
from runner.record import part

MOST_BLANK = 4  # cells for each item of a grid that is worth it
MOST_NAMED = 40  # keys that items name, beyond what any manifest has
LONGEST = 10_000  # characters of a value
DIRECT = ("prompt", "seed")  # an axis each, in whatever way they came
SAID = (*DIRECT, "model", "width", "height", "steps", "scale", "sampler")  # also where they are nothing special
Codes = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The values of a key, and which of them each row has. `swept` says whether it is an axis of the sweep."""

    name: str
    values: Sequence[str]
    codes: Codes
    swept: bool = False


class _Values:
    """A column that grows. While there is one value, it has no codes."""

    def __init__(self, first: str) -> None:
        self.places: dict[str, int] = {first: 0}
        self.codes: array[int] | None = None

    def add(self, text: str, rows: int) -> None:
        code = self.places.setdefault(text, len(self.places))
        if self.codes is None:
            if not code:
                return
            self.codes = array("I", bytes(4 * rows))
        self.codes.append(code)

    def as_column(self, name: str, rows: int) -> Column:
        codes = np.zeros(rows, np.uint32) if self.codes is None else np.array(self.codes, np.uint32)
        return Column(name=name, values=list(self.places), codes=codes)


class Table:
    """The values of items by key; `wanted` rows, the first ones, decide which keys are axes, None is all of them."""

    def __init__(self, columns: Iterable[Column] = (), named: Iterable[str] = (), rows: int = 0) -> None:
        self.rows, self.named = rows, dict.fromkeys(named)
        self._grown: dict[str, _Values] = {}
        for column in columns:
            values = _Values("")
            values.places = {text: place for place, text in enumerate(column.values)}
            values.codes = array("I", column.codes.tobytes()) if len(column.values) > 1 else None
            self._grown[column.name] = values

    def add(self, coordinates: Mapping[str, str], named: Iterable[str] = ()) -> None:
        """One more row; `named` are the keys that its item's `axes` name."""
        for name in named:
            if name not in self.named and len(self.named) < MOST_NAMED:
                self.named[name] = None
        for name, text in coordinates.items():
            values = self._grown.get(name)
            if values is None:
                if name not in KEYS and name not in self.named:
                    continue
                values = self._grown[name] = _Values(text if not self.rows else missing(name))
            values.add(text, self.rows)
        for name in self._grown.keys() - coordinates.keys():
            self._grown[name].add(missing(name), self.rows)
        self.rows += 1

    def columns(self, wanted: int | None = None) -> list[Column]:
        """A column for each key that has more than one value, axes first, in the order of the manifest's."""
        wanted = self.rows if wanted is None else wanted
        return _judged([column for column in self.all_columns() if len(column.values) > 1], self.named, wanted)

    def all_columns(self) -> Iterator[Column]:
        """A column for each key, in no order."""
        return (values.as_column(name, self.rows) for name, values in self._grown.items())

    def common(self) -> dict[str, str]:
        """The values that all rows share, without those that go without saying."""
        alike = {name: next(iter(each.places)) for name, each in self._grown.items() if len(each.places) == 1}
        return {name: text for name, text in alike.items() if text and (name in SAID or text != missing(name))}

    def reordered(self, rows: Sequence[int]) -> Table:
        """The same rows in another order, with their values in the order in which they come then."""
        columns = []
        for column in self.all_columns():
            taken = column.codes[np.asarray(rows, dtype=np.intp)]
            first = np.unique(taken, return_index=True)
            order = first[0][np.argsort(first[1])]
            places = np.zeros(len(column.values), np.uint32)
            places[order] = np.arange(len(order), dtype=np.uint32)
            columns.append(
                Column(name=column.name, values=[column.values[each] for each in order], codes=places[taken])
            )
        return Table(columns, self.named, len(rows))


def usual_axes(columns: Sequence[Column], wanted: int) -> tuple[str, ...]:
    """The two axes that a grid begins with, its rows and its columns; none where it would be nearly empty.

    Rows are the slowest axis. Columns are the next one, but for those that show few items beside the others: jobs may
    sweep over different axes. All other axes have their first values then.
    """
    axes = [column for column in columns if column.swept]
    if len(axes) < 2:
        return ()
    rows, *others = axes
    firsts = {column.name: column.codes[:wanted] == column.codes[0] for column in others}
    shown = {
        name: np.logical_and.reduce([np.ones(wanted, bool), *(firsts[each] for each in firsts if each != name)])
        for name in firsts
    }
    most = max(int(mask.sum()) for mask in shown.values())
    column = next(each for each in others if 2 * int(shown[each.name].sum()) >= most)
    mask = shown[column.name]
    sides = [len(np.unique(axis.codes[:wanted][mask])) for axis in (rows, column)]
    return (rows.name, column.name) if sides[0] * sides[1] <= MOST_BLANK * int(mask.sum()) else ()


def coordinates(item: Mapping[str, Any], model: str) -> dict[str, str]:
    """The values of an item, as a record has it, by key; those of its axes as the manifest names them."""
    found = {key: as_text(item[key]) for key in KEYS if item.get(key) is not None}
    found["model"] = model
    if loras := part(item, "loras"):
        found["loras"] = ", ".join(f"{name} {_strength(each)}" for name, each in loras.items())
    found |= {f"{ONE}{name}": _strength(each) for name, each in loras.items()}
    for name, value in part(item, "axes").items():
        found[str(name)] = as_text(value)
    return {name: text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for name, text in found.items()}


def missing(name: str) -> str:
    """The value of a key that an item doesn't mention."""
    if name.startswith(ONE):
        return "0"
    default = KEYS[name].default if name in KEYS and name != "loras" else None
    return "" if default is None else as_text(default)


def as_text(value: object) -> str:
    """A value of an item as people write it."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list | tuple) and not any(isinstance(each, list | tuple | dict) for each in value):
        return ", ".join(as_text(each) for each in value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"


def _strength(lora: object) -> str:
    """As `manifest.loras.show_strength` writes it, of a record's LoRA."""
    given = lora if isinstance(lora, dict) else {}
    unet, text = (as_text(given.get(key)) for key in ("unet", "text"))
    return unet if unet == text else f"unet {unet}, text {text}"


def _judged(columns: Sequence[Column], named: Iterable[str], wanted: int) -> list[Column]:
    """The columns in the manifest's order, each with whether it is an axis."""
    by_name = {column.name: column for column in columns}
    said = [name for name in named if name in by_name]
    before = [name for name in ("prompt",) if name in by_name and name not in said]
    order = dict.fromkeys([*before, *(name for name in said if name != "seed"), "seed", *by_name])
    found: list[Column] = []
    for name in (name for name in order if name in by_name):
        column, own = by_name[name], by_name[name].codes[:wanted]
        axes = [each for each in found if each.swept]
        swept = bool(len(own)) and bool((own != own[0]).any())
        if swept and (name in said or name in DIRECT):
            # Of keys that are walked together the first one stands for all.
            swept = not any(_decides(each, own, wanted) and _decides(column, each.codes, wanted) for each in axes)
        elif swept:
            together = name == "loras" and any(each.name.startswith(ONE) for each in axes)
            swept = not together and not any(_decides(each, own, wanted) for each in axes if each.name != "seed")
        found.append(Column(name=name, values=column.values, codes=column.codes, swept=swept))
    return sorted(found, key=lambda column: not column.swept)


def _decides(column: Column, codes: Codes, wanted: int) -> bool:
    """Whether rows with one value of the column have one code each."""
    own = column.codes[:wanted].astype(np.uint64)
    pairs = own << np.uint64(32) | codes[:wanted]
    return len(np.unique(pairs)) == len(np.unique(own))
