"""Groups items into waves: those that are made together have one size and one set of LoRAs.

They have one sampler as well as far as these fill a wave.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runner.item import Item
from runner.planning.layouts import Execution, Layout

BUFFERED_WAVES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Items of one size and one set of LoRAs that are made together, as `layout` says."""

    items: tuple[Item, ...]
    layout: Layout

    @property
    def unet_bs(self) -> int:
        return self.layout.unet_bs


def group(items: Iterable[Item], execution: Execution) -> Iterator[Wave]:
    """Puts items into waves, lazily: of one size, and of one sampler and step count as far as these fill a wave.

    What has the same LoRAs should come together: each set is finished before the next one.
    """
    for _, alike in itertools.groupby(items, key=lambda item: item.loras):
        yield from _group_alike(alike, execution)


def _group_alike(items: Iterable[Item], execution: Execution) -> Iterator[Wave]:
    buckets: dict[tuple[int, int], dict[tuple[str, int], list[Item]]] = {}
    layouts: dict[tuple[int, int], Layout] = {}
    for item in items:
        size = (item.width, item.height)
        if size not in layouts:
            layouts[size] = execution.layout(*size)
        layout = layouts[size]
        alike = buckets.setdefault(size, {})
        bucket = alike.setdefault((item.sampler, item.steps), [])
        bucket.append(item)
        if _rows(bucket) >= layout.wave_rows:
            full, alike[item.sampler, item.steps] = _cut(bucket, layout)
            yield full
        elif sum(map(_rows, alike.values())) >= BUFFERED_WAVES * layout.wave_rows:
            yield from split((item for bucket in alike.values() for item in bucket), layout)
            alike.clear()
    for size, alike in buckets.items():
        yield from split((item for bucket in alike.values() for item in bucket), layouts[size])


def split(items: Iterable[Item], layout: Layout) -> Iterator[Wave]:
    """Waves of items of one size, in their order."""
    filling: list[Item] = []
    for item in items:
        filling.append(item)
        if _rows(filling) >= layout.wave_rows:
            full, filling = _cut(filling, layout)
            yield full
    if filling:
        yield Wave(items=tuple(filling), layout=layout)


def _cut(items: list[Item], layout: Layout) -> tuple[Wave, list[Item]]:
    """A full wave, and the last item if that is a row too many for it."""
    most = len(items) - 1 if _rows(items) > layout.wave_rows and len(items) > 1 else len(items)
    return Wave(items=tuple(items[:most]), layout=layout), items[most:]


def _rows(items: Iterable[Item]) -> int:
    return sum(item.rows for item in items)
