"""A piece of the device's memory that units of weights walk through: each has its place, one behind the other.

In each walk the units come in the same order, and each lies where it lay in the walk before. A unit is brought as soon
as the ones that lie in its place are no longer needed, so that as many are on their way as the piece has room for.
Where a unit's copy and the kernels before it are given to two streams of a device, events keep their order.

    places = plan([70, 20, 70], room=140)
    places[2]              # Place(start=0, size=70, waits_for=2): for the first unit, two units earlier
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runner.machine.heap import process_heap


class Place(NamedTuple):
    """Where a unit lies, in bytes, and how many units earlier the last one lay in its place."""

    start: int
    size: int
    waits_for: int


def plan(sizes: Sequence[int], room: int) -> list[Place]:
    """The places of units of these sizes in bytes, which come in this order again and again.

    Raises:
        ValueError: a unit is larger than the room.
    """
    starts, end = list[int](), 0
    for size in sizes:
        if size > room:
            raise ValueError(f"a unit of {size} bytes in a room of {room}")
        begin = end if end + size <= room else 0
        starts.append(begin)
        end = begin + size
    return [Place(starts[at], size, _waits_for(at, starts, sizes)) for at, size in enumerate(sizes)]


def _waits_for(at: int, starts: Sequence[int], sizes: Sequence[int]) -> int:
    count, begin, end = len(sizes), starts[at], starts[at] + sizes[at]
    for earlier in range(1, count):
        other = (at - earlier) % count
        if starts[other] < end and begin < starts[other] + sizes[other]:
            return earlier
    return count  # for itself


class Piece:
    """Memory that weights are brought into: a part of a ring, or new memory. On CUDA they wait for `free`, an event.

    `made` is where those who bring weights into it again and again may leave the tensors that they made over it.
    """

    def __init__(self, device: torch.device, memory: Tensor | None = None) -> None:
        self._device, self._memory = device, memory
        self.free: Any = None
        self.made: Any = None

    def allocate(self, size: int) -> Tensor:
        """So many bytes of it, uint8."""
        if self._memory is None:
            process_heap().check(size)
            self._memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            # It is free in the order of the stream that computes: kernels that wait there may still write into it.
            self.free = record(self._device)
        assert size <= self._memory.numel(), "a unit's place is as large as the unit"
        return self._memory[:size]


class Ring:
    """The units' places in memory that is there, and which units may be brought into it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None
        self._places: list[Place] = []
        self._pieces: list[Piece] = []  # by place
        self._events: list[Any] = []  # by place: when the last unit in it was no longer needed
        self._born: Any = None
        self.released = 0  # units, since they got their places

    def lay(self, sizes: Sequence[int], room: int) -> None:
        """Gives units of these sizes their places; nothing may be on its way."""
        room = max(room, *sizes)
        if self._memory is None or self._memory.numel() != room:
            self.clear()
            process_heap().check(room)
            self._memory = torch.empty(room, dtype=torch.uint8, device=self._device)
        self._places, self._events, self.released = plan(sizes, room), [None] * len(sizes), 0
        self._pieces = [Piece(self._device, self._memory[at.start : at.start + at.size]) for at in self._places]
        self._born = record(self._device)

    def has_room_for(self, number: int) -> bool:
        """Whether the unit that comes as this one, counted from 0 through all walks, may be brought now."""
        return number - self._places[number % len(self._places)].waits_for < self.released

    def piece(self, number: int) -> Piece:
        """The place of this unit."""
        count = len(self._places)
        piece, before = self._pieces[number % count], number - self._places[number % count].waits_for
        piece.free = self._events[before % count] if before >= 0 else self._born
        return piece

    def release(self) -> None:
        """The next unit isn't needed any more, once the work that was given to the device so far is done."""
        self._events[self.released % len(self._places)] = record(self._device)
        self.released += 1

    def clear(self) -> None:
        """Gives the memory back."""
        self._memory, self._born = None, None
        self._places, self._pieces, self._events = [], [], []


def record(device: torch.device) -> Any:
    """An event after all work that the stream which computes was given; None where there are no streams."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
