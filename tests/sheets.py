"""Sweeps for tests of the contact sheet, and what it shows of them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from builders import make_item

from runner.item import Item
from runner.record import item_dict
from runner.report.axes import Table, coordinates
from runner.report.sheet.arrange import Items


def sweep(first: int = 0, **axes: Sequence[Any]) -> list[Item]:
    """Every combination of the values of item keys, the last one fastest."""
    rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [make_item(number=first + n, axes=tuple(row.items()), **row) for n, row in enumerate(rows)]


def items_of(swept: Sequence[Item], *, unmade: Collection[int] = ()) -> Items:
    """What a sheet shows of items; the picture of each one has its number as its path."""
    table = Table()
    for item in swept:
        table.add(coordinates(item_dict(item), item.model.name), dict(item.axes))
    return Items(
        columns=table.columns(),
        common=table.common(),
        made=[number not in unmade for number in range(len(swept))],
        paths=["" if number in unmade else str(number) for number in range(len(swept))],
        sizes=[(item.width, item.height) for item in swept],
        problems={},
    )
