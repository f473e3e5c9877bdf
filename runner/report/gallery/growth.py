"""The gallery of a run that is under way: the page grows while it is looked at.

Updates take at most a hundredth of the run's time: the next one waits a hundred times as long as the last one took. The
first one reads the whole ledger, and waits until that is expected to be as cheap.

    growth = Growth(wanted, ledger)
    for event in events:
        growth.update()
"""

from __future__ import annotations

import time
from collections.abc import Callable

from runner.folder.ledger import Ledger, iterate_records
from runner.folder.names import GALLERY
from runner.report.gallery.catalog import Catalog
from runner.report.gallery.page import render_page
from runner.report.wanted import Wanted

SHARE = 100  # parts of the run's time, of which updates take one
SHORTEST = 2.0  # seconds between two of them
SECONDS_A_ROW = 1e-4  # that the first one is expected to take


class Growth:
    """Updates the page and its data when that is due; without `wanted`, of too many items, it never is."""

    def __init__(self, wanted: Wanted | None, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._wanted, self._ledger, self._clock = wanted, ledger, clock
        self._catalog: Catalog | None = None
        rows = len(wanted.ids) + ledger.count if wanted else 0
        self._due = clock() + (SHARE * SECONDS_A_ROW * rows)

    def update(self) -> None:
        """Writes what is new, if it is time to."""
        if self._wanted is None or (begun := self._clock()) < self._due:
            return
        self._ledger.flush()  # what the page says is made is recorded
        if self._catalog is None:
            self._catalog = self._begin(self._wanted)
        self._catalog.write(running=True)
        now = self._clock()
        self._due = now + max(SHORTEST, SHARE * (now - begun))

    def _begin(self, wanted: Wanted) -> Catalog:
        """Reads what is recorded; what will be is heard of from now on."""
        store = self._ledger.store
        catalog = Catalog(store, wanted)
        for record in iterate_records(store):
            catalog.add(record)
        self._ledger.heard = catalog.add
        store.put(GALLERY, render_page(store.name))
        return catalog
