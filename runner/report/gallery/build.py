"""The report of a run folder: `gallery.html`, which opens without a server, its data, and beside it `grid.png`.

All of it is made anew from the records and the pictures, so it can be made at any time, also during a run. No record
and no picture is changed; an item without a picture is shown as such.

    files = build(store_at("outputs/alps"))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from runner.folder.ledger import iterate_records
from runner.folder.names import GALLERY, RECORDS
from runner.folder.store import Store
from runner.report import sheet
from runner.report.gallery.catalog import DONE, FAILED, Catalog
from runner.report.gallery.page import render_page
from runner.report.gallery.thumbnails import make_missing
from runner.report.wanted import Wanted

SHORTEST = 1.0  # seconds between two looks at the records


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryFiles:
    """What was made, and of how many items."""

    items: int
    failed: int


def build(store: Store, per_row: int | None = None, *, thumbnails: bool = False) -> GalleryFiles:
    """Makes the report of a run folder; `per_row` is the number of pictures in a row of the grid.

    With `thumbnails` those that are missing are made as well.
    """
    catalog = build_page(store, running=False, thumbnails=thumbnails)
    sheet.write(store, catalog.shown(), per_row)
    return GalleryFiles(items=len(catalog.ids), failed=catalog.counts[FAILED])


def watch(store: Store, wait: Callable[[float], object] = time.sleep) -> None:
    """Makes the page again whenever there are new records, until it is interrupted; other processes write them.

    `wait` waits for so many seconds; a tenth of the time or less goes into building.
    """
    seconds, before = 0.0, -1
    try:
        while True:
            if (size := store.size(RECORDS)) != before:
                begun = time.monotonic()
                build_page(store, running=True, thumbnails=True)
                seconds, before = time.monotonic() - begun, size
            wait(max(SHORTEST, 10 * seconds))
    finally:
        build_page(store, running=False)


def build_page(store: Store, *, running: bool, thumbnails: bool = False) -> Catalog:
    """Makes the page and its data alone; `running` says that there will be more."""
    wanted = Wanted.load(store) or Wanted.of_records(store)
    catalog = Catalog(store, wanted)
    for record in iterate_records(store):
        catalog.add(record)
    catalog.look()
    if thumbnails:
        done = (row for row, state in enumerate(catalog.states) if state == DONE)
        make_missing(store, ((catalog.paths[row], catalog.sizes[row]) for row in done))
    catalog.write(running=running)
    store.put(GALLERY, render_page(store.name))
    catalog.sweep()
    return catalog
