"""The device's memory that weights walk through: slots of one size, which groups of units fill in turn.

A group is brought as soon as the one that was in its slot before is no longer needed. In each walk the same groups come
in the same order. Where the copy of a group and the kernels before it are given to two streams of a device, events keep
their order.

    groups = gather({"conv_in": 10, "down": 60, "mid": 70}, room=70)   # [["conv_in", "down"], ["mid"]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.machine.heap import process_heap


def gather(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Units that come one after the other, in groups that are as large as there is room for, but of one at least."""
    groups: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not groups or filled + size > room:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


class Piece:
    """Memory that a unit is brought into: a part of a slot, or new memory. On CUDA it waits for `free`, an event.

    `made` is where those who bring a unit into it again and again may leave the tensors that they made over it.
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


class Slots:
    """`count` slots, and which groups may be brought into them. Groups are numbered from 0 through all walks."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._device, self._count = device, count
        self._memories: list[Tensor] = []
        self._pieces: list[list[list[Piece]]] = []  # of each group, by slot
        self._free: list[Any] = []  # an event for each slot
        self.released = 0  # groups, since they got their places

    def lay(self, groups: Sequence[Sequence[int]], room: int) -> None:
        """Makes slots of so many bytes, for groups of units of these sizes; nothing may be on its way."""
        if not self._memories or self._memories[0].numel() != room:
            self.clear()
            process_heap().check(self._count * room)
            self._memories = [torch.empty(room, dtype=torch.uint8, device=self._device) for _ in range(self._count)]
        self._pieces = [[self._cut(memory, sizes) for memory in self._memories] for sizes in groups]
        self._free = [record(self._device)] * self._count
        self.released = 0

    def _cut(self, memory: Tensor, sizes: Sequence[int]) -> list[Piece]:
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        return [Piece(self._device, memory[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def has_room_for(self, number: int) -> bool:
        """Whether this group may be brought now."""
        return number - self._count < self.released

    def pieces(self, number: int) -> Sequence[Piece]:
        """The places of this group's units."""
        slot = number % self._count
        found = self._pieces[number % len(self._pieces)][slot]
        for piece in found:
            piece.free = self._free[slot]
        return found

    def release(self) -> None:
        """The next group isn't needed any more, once the work that was given to the device so far is done."""
        self._free[self.released % self._count] = record(self._device)
        self.released += 1

    def clear(self) -> None:
        """Gives the memory back."""
        self._memories, self._pieces, self._free = [], [], []


def record(device: torch.device) -> Any:
    """An event after all work that the stream which computes was given; None where there are no streams."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
