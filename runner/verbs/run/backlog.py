"""What a run still has to make: walks once through a request's items and lets those through that have no picture.

On its way it notes which items it gave up, since they failed too often, and which pictures nobody asks for any more. It
makes nothing and writes nothing.

    backlog = Backlog(request, ledger)
    for item in backlog:
        ...
        backlog.settle(identity)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from runner.folder.ledger import Index
from runner.item import Item, item_id
from runner.request import Request

COUNTED = 10_000  # items that are looked at before the first one is made, so that their number can be said


class Backlog:
    """The items without a picture, each once. `missing` is their number, beyond `COUNTED` items an estimate."""

    def __init__(self, request: Request, index: Index) -> None:
        self.given_up: list[Item] = []
        self._request, self._index = request, index
        self._under_way: set[str] = set()  # ids that were let through and are not in the ledger, or failed
        self._unmet = index.images()
        self._ended = False
        walk = self._walk()
        head = [item for item in islice(walk, COUNTED) if item is not None]
        # What the ledger leaves to be made, if no file was lost and all that isn't met yet will be.
        unseen = max(0, request.count() - COUNTED - len(self._unmet))
        rest = (item for item in walk if item is not None)
        first = head or list(islice(rest, 1))
        self._items = chain(first, rest)
        self.missing = len(first) if self._ended else max(len(first), len(head) + unseen)

    def __iter__(self) -> Iterator[Item]:
        return self._items

    def settle(self, identity: str) -> None:
        """An item is done, and the ledger knows it."""
        self._under_way.discard(identity)

    def unwanted(self) -> list[str]:
        """Paths of pictures that no item asks for, once all items were walked past; none where these are limited."""
        return list(self._unmet.values()) if self._ended and self._request.is_whole else []

    def _walk(self) -> Iterator[Item | None]:
        """For each wanted item itself if it has to be made, else None."""
        for item in self._request.wanted():
            yield item if self._is_missing(item) else None
        self._ended = True

    def _is_missing(self, item: Item) -> bool:
        identity = item_id(item)
        self._unmet.pop(identity, None)
        if identity in self._under_way or self._index.is_done(identity):
            return False
        self._under_way.add(identity)
        if self._index.failures(identity) >= self._request.settings.attempts:
            self.given_up.append(item)
            return False
        return True
