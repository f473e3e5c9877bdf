"""Tensors that are made once and used by many waves, in the host's memory, up to so many bytes of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Tensors = tuple[Tensor | None, ...]


class Remembered(Generic[Key]):
    """The tensors that were used last, some for each key; `most` is in bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._kept: OrderedDict[Key, Tensors] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __getitem__(self, key: Key) -> Tensors:
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, key: Key, tensors: Sequence[Tensor | None]) -> Tensors:
        """Remembers tensors, on the host, and forgets those that weren't used for longest; returns them."""
        # Clones, not views of what else was made with them.
        kept = self._kept[key] = tuple(each if each is None else each.cpu().clone() for each in tensors)
        self._held += _bytes(kept)
        while self._held > self._most and len(self._kept) > 1:
            self._held -= _bytes(self._kept.popitem(last=False)[1])
        return kept


def _bytes(tensors: Tensors) -> int:
    return sum(each.nbytes for each in tensors if each is not None)
