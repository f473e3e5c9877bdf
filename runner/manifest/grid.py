"""Every combination of the values on some axes, less those that are left out, each found by its number alone.

The last axis varies fastest. Values can be anything. There is never a list of combinations; only where some are left
out, there is one of the numbers that remain, for the axes that are concerned.

    grid = Grid([Axis.of("steps", [10, 20]), Axis.of("seed", range(100))])
    grid.position(142) == 142  # the second of the steps, the 43rd of the seeds
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_LOOKED_AT = 10**7  # combinations of the axes that exclusions speak of


class TooLarge(ValueError):
    """Too many combinations to look at each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One key and the values that it takes in turn, or several that are walked together, all of one length.

    `named` says whether the items name their values on it.
    """

    columns: Mapping[str, Sequence[Any]]
    named: bool
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(next(iter(self.columns.values()))))

    @classmethod
    def of(cls, key: str, values: Sequence[Any], *, named: bool = True) -> Axis:
        """An axis of one key."""
        return cls(columns={key: values}, named=named)

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Remainder:
    """The numbers, ascending, of what remains of all combinations of the axes from `first` to before `stop`."""

    first: int
    stop: int
    numbers: np.ndarray[Any, np.dtype[np.int64]]


def _count(axes: Iterable[Axis]) -> int:
    return math.prod(map(len, axes))


class Grid:
    """The combinations; `size` is their number."""

    def __init__(self, axes: Iterable[Axis], remainder: Remainder | None = None) -> None:
        self.axes = tuple(axes)
        self._remainder = remainder
        first, stop = (remainder.first, remainder.stop) if remainder else (0, 0)
        self._all, self._after = _count(self.axes[first:stop]), _count(self.axes[stop:])
        self.size = _count(self.axes[:first]) * (len(remainder.numbers) if remainder else 1) * self._after

    def position(self, number: int) -> int:
        """The number that the combination would have if none were left out."""
        if not self._remainder:
            return number
        numbers = self._remainder.numbers
        number, after = divmod(number, self._after)
        before, number = divmod(number, len(numbers))
        return (before * self._all + numbers.item(number)) * self._after + after


def check_size(axes: Iterable[Axis]) -> None:
    """Raises TooLarge for axes with more combinations than can be looked at one by one."""
    if (count := _count(axes)) > MOST_LOOKED_AT:
        raise TooLarge(f"{count} combinations would have to be looked at; the most is {MOST_LOOKED_AT}")


def leave_out(axes: Sequence[Axis], exclusions: Sequence[Mapping[int, Sequence[int]]]) -> Remainder:
    """What remains without the combinations that match one of the exclusions.

    An exclusion has the places that match it, by the axis' index; other axes match anywhere.

    Raises:
        TooLarge: of the axes from the first to the last that exclusions speak of.
    """
    spoken_of = {index for exclusion in exclusions for index in exclusion}
    first, stop = min(spoken_of, default=0), max(spoken_of, default=-1) + 1
    check_size(axes[first:stop])
    left_out = np.zeros([len(axis) for axis in axes[first:stop]], dtype=bool)
    for exclusion in exclusions:
        places = [exclusion.get(index, range(len(axes[index]))) for index in range(first, stop)]
        left_out[np.ix_(*places)] = True
    return Remainder(first=first, stop=stop, numbers=np.flatnonzero(~left_out))
