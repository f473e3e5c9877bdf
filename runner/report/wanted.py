"""What a manifest asks for: the ids of its items in its order, and what tells them apart.

A run writes it into the folder when the manifest has changed, so that the reports know order, axes, and what is missing
or no longer asked for. Of a folder without it, or of more items than `MOST`, the records alone say it.

    wanted = Wanted.of(request.items)
    if wanted:
        wanted.save(store)
    Wanted.load(store).ids
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from runner.folder.ledger import iterate_records
from runner.folder.names import WANTED
from runner.folder.store import Store
from runner.item import Item, item_id
from runner.record import item_dict, part
from runner.report.axes import Column, Table, coordinates

MOST = 200_000
LARGEST_SIDE = 1 << 20  # pixels that a record may say
UNKNOWN_SIZE = 512, 512
VERSION = 1
MODEL, AXES = Item._fields.index("model"), Item._fields.index("axes")
WIDTH = Item._fields.index("width")


class Wanted:
    """The ids in the manifest's order, their values, their sizes in pixels, and a hash of ids and values."""

    def __init__(self, ids: Sequence[str], table: Table, sizes: Sequence[tuple[int, int]]) -> None:
        self.ids, self.table, self.sizes = ids, table, sizes
        said = [column.values for column in table.columns()]
        self.mark = hashlib.sha256(orjson.dumps([VERSION, ids, said])).hexdigest()

    @classmethod
    def of(cls, items: Sequence[Item]) -> Wanted | None:
        """What these items are; None where they are too many. Takes some 25 µs an item."""
        if len(items) > MOST:
            return None
        table, ids, sizes = Table(), list[str](), list[tuple[int, int]]()
        known: dict[tuple[Any, ...], Mapping[str, str]] = {}
        for item in items:
            # Neighbours share all but their prompt and their seed.
            shared = (item.negative, item[WIDTH:AXES])
            if shared not in known:
                known[shared] = coordinates({**item_dict(item), "axes": {}}, item.model.name)
            own = {"prompt": item.prompt, "seed": str(item.seed), "axes": dict(item.axes)}
            table.add({**known[shared], **coordinates(own, item.model.name)}, own["axes"])
            ids.append(item_id(item))
            sizes.append((item.width, item.height))
        return cls(ids, table, sizes)

    @classmethod
    def of_records(cls, store: Store) -> Wanted:
        """What the records of a folder are of, in the order of their items' numbers."""
        table, rows, sizes, numbers = Table(), dict[str, int](), list[tuple[int, int]](), list[float]()
        for record in iterate_records(store):
            item = part(record, "item")
            number = item.get("number")
            place = number if isinstance(number, int) else math.inf
            if (row := rows.setdefault(record["id"], len(rows))) < len(numbers):
                numbers[row] = place
                continue
            table.add(*told(record))
            numbers.append(place)
            sizes.append(size_of(item))
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        ids = list(rows)
        return cls([ids[row] for row in order], table.reordered(order), [sizes[row] for row in order])

    @classmethod
    def load(cls, store: Store) -> Wanted | None:
        """What the last run asked for; None where that can't be read."""
        if store.size(WANTED) < 0:
            return None
        try:
            with store.open(WANTED) as file:
                said = orjson.loads(file.read())
            ids, sizes = said["ids"], [said["sizes"][each] for each in said["size"]]
            columns = [_column(name, each, len(ids)) for name, each in said["columns"].items()]
            if said["version"] != VERSION or not ids or len(ids) != len(sizes):
                return None
            if not all(isinstance(each, str) for each in (*ids, *said["named"])):
                return None
            table = Table(columns, said["named"], len(ids))
            return cls(ids, table, [size_of({"width": w, "height": h}) for w, h in sizes])
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            return None

    def save(self, store: Store) -> None:
        """Writes it into the folder."""
        sizes = list(dict.fromkeys(self.sizes))
        places = {size: place for place, size in enumerate(sizes)}
        columns = {
            column.name: {"values": column.values}
            | ({"codes": column.codes.tolist()} if len(column.values) > 1 else {})
            for column in self.table.all_columns()
        }
        said = {
            "version": VERSION,
            "named": list(self.table.named),
            "columns": columns,
            "sizes": sizes,
            "size": [places[size] for size in self.sizes],
            "ids": self.ids,
        }
        store.put(WANTED, orjson.dumps(said))


def told(record: Mapping[str, Any]) -> tuple[dict[str, str], Iterable[str]]:
    """A record's values by key, and the keys that its item's axes name."""
    item = part(record, "item")
    return coordinates(item, str(part(record, "model").get("name", "?"))), part(item, "axes")


def size_of(item: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height in pixels that an item says, or those of an ordinary picture."""
    width, height = (item.get(key) for key in ("width", "height"))
    if all(type(side) is int and 0 < side <= LARGEST_SIDE for side in (width, height)):
        return width, height  # type: ignore[return-value]
    return UNKNOWN_SIZE


def _column(name: str, said: Mapping[str, Any], rows: int) -> Column:
    """A column that was saved. Raises ValueError and others: it is not one."""
    values, codes = said["values"], np.asarray(said.get("codes", [0] * rows), dtype=np.uint32)
    if codes.shape != (rows,) or (rows and int(codes.max()) >= len(values)) or len(set(values)) < len(values):
        raise ValueError(name)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(name)
    return Column(name=name, values=values, codes=codes)
