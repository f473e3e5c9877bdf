"""Sequences that hold no list of what is in them: each entry is made when it is asked for.

seeds = join([range(0, 10**9), range(5, 7)])
seeds[-1] == 6
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class Lazy(Sequence[T_co]):
    """A sequence whose entries are made by `_make`, from 0 on; beyond the last one it raises an IndexError."""

    @abstractmethod
    def _make(self, place: int) -> T_co: ...

    @overload
    def __getitem__(self, place: int) -> T_co: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T_co]: ...
    def __getitem__(self, place: int | slice) -> T_co | Sequence[T_co]:
        if isinstance(place, slice):
            return [self._make(each) for each in range(*place.indices(len(self)))]
        return self._make(place if place >= 0 else range(len(self))[place])

    def __iter__(self) -> Iterator[T_co]:
        return map(self._make, range(len(self)))


class _Joined(Lazy[T_co]):
    def __init__(self, parts: Sequence[Sequence[T_co]]) -> None:
        self.parts, self._ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def _make(self, place: int) -> T_co:
        part = bisect_right(self._ends, place)
        return self.parts[part][place - self._ends[part]]


def join(parts: Sequence[Sequence[T_co]]) -> Sequence[T_co]:
    """These sequences, at least one, one after the other."""
    return parts[0] if len(parts) == 1 else _Joined(parts)


def parts_of(sequence: Sequence[T_co]) -> Sequence[Sequence[T_co]]:
    """The sequences that were joined, or the one that was not."""
    return sequence.parts if isinstance(sequence, _Joined) else [sequence]
