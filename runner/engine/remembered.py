"""Tensors that are made once and used by many waves, in the host's memory, up to so many bytes of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


class Remembered(Generic[Key]):
    """The tensors that were used last; `most` is in bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._tensors: OrderedDict[Key, Tensor] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._tensors

    def __getitem__(self, key: Key) -> Tensor:
        self._tensors.move_to_end(key)
        return self._tensors[key]

    def keep(self, key: Key, tensor: Tensor) -> Tensor:
        """Remembers a tensor, on the host, and forgets those that weren't used for longest; returns it."""
        kept = self._tensors[key] = tensor.cpu().clone()  # not a view of what else was made with it
        self._held += kept.nbytes
        while self._held > self._most and len(self._tensors) > 1:
            self._held -= self._tensors.popitem(last=False)[1].nbytes
        return kept
