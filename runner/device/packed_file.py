"""Weights as the CPU multiplies by them, in a file without a name that lives no longer than the process.

A walk needs every weight once a step; to convert and pack it each time takes a tenth of the step. Here a part's weights
are written down after the first time, in their number type and oneDNN's order, and from then on one plain read brings
them to where they are used. The file is in the user's cache folder. Where that has no room or is itself memory, or
torch can't do it, nothing is kept, and weights come as they would without this.

    file.keep(name, part)          # while the weights are there
    file.bring(name, allocate)     # by their names in the part; None if they weren't kept
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from runner.kernels import opaque
from runner.kernels.packed import Packed, packed_in
from runner.machine.cache import cache_folder

ALIGNMENT = 512  # bytes, that of an allocation on CUDA; another one may choose another kernel
MOST_OF_THE_DISK = 0.5  # of what is free
IN_MEMORY = ("tmpfs", "ramfs")  # file systems
MOUNTS = Path("/proc/self/mountinfo")


class _Kept(NamedTuple):
    """One weight: where its bytes begin among its part's, how many they are, and what they mean."""

    start: int
    size: int
    form: opaque.Form


class _Place(NamedTuple):
    """A part's piece of the file, what lies in it, and for which inputs weights were packed."""

    start: int
    room: int
    kept: dict[str, _Kept]
    packed_for: dict[str, torch.Size | None]

    @property
    def size(self) -> int:
        """The bytes that were written."""
        return max(kept.start + kept.size for kept in self.kept.values())


class PackedFile:
    """Parts' weights, by the parts' names; the file may well reach `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room, self._end = room, 0
        self._places: dict[str, _Place] = {}
        self._file: int | None = None  # a descriptor
        self._closed = not opaque.can_be_made()  # for more; what is in it stays

    def size(self, name: str) -> int:
        """The bytes of a part's weights here; 0 if they weren't kept."""
        place = self._places.get(name)
        return place.size if place and place.kept else 0

    def forget(self, changed: Collection[str]) -> None:
        """Weights of these names are others by now; the place of their parts is for what they become."""
        for name, place in self._places.items():
            if any(f"{name}.{own}".lstrip(".") in changed for own in place.kept):
                self._places[name] = place._replace(kept={})

    def keep(self, name: str, part: nn.Module) -> None:
        """Writes a part's weights down as they are now, unless they are in the file just so."""
        if self._closed:
            return
        try:
            self._keep(name, part)
        except (OSError, RuntimeError):
            self._closed = True

    def _keep(self, name: str, part: nn.Module) -> None:
        packed, kept, size = packed_in(part), dict[str, _Kept](), 0
        tensors = {own: packed[own].weight if own in packed else tensor for own, tensor in part.named_parameters()}
        for own, tensor in tensors.items():
            kept[own] = _Kept(size, len(opaque.bytes_of(tensor)), opaque.form_of(tensor))
            size += aligned(kept[own].size)
        place = self._places.pop(name, None)  # what is half-written isn't there
        if place is None or place.kept != kept:
            start, room = (place.start, place.room) if place and size <= place.room else (self._end, size)
            for own, tensor in tensors.items():
                self._write(opaque.bytes_of(tensor), start + kept[own].start)
            self._end = max(self._end, start + room)
        else:
            start, room = place.start, place.room
        self._places[name] = _Place(start, room, kept, {own: each.packed_for for own, each in packed.items()})

    def bring(self, name: str, allocate: Callable[[int], Tensor]) -> dict[str, Tensor | Packed] | None:
        """A part's weights by their names in it, read into memory uint8 [size]; None if they can't be had here."""
        place = self._places.get(name)
        if place is None or not place.kept:
            return None
        memory = allocate(place.size)
        try:
            self._read(memory.numpy().data, place.start)
            tensors = {
                own: opaque.make_over(memory[it.start : it.start + it.size], it.form) for own, it in place.kept.items()
            }
        except (OSError, RuntimeError):
            del self._places[name]
            self._closed = True
            return None
        packed = {own: Packed(tensors[own], packed_for, memory) for own, packed_for in place.packed_for.items()}
        return {**tensors, **packed}

    def _read(self, view: memoryview, start: int) -> None:
        assert self._file is not None, "something was kept"
        while len(view):
            if not (read := os.preadv(self._file, [view], start)):
                raise OSError("the file ends too early")
            view, start = view[read:], start + read

    def _write(self, view: memoryview, start: int) -> None:
        if self._file is None:
            self._file = self._open()
        while len(view):
            written = os.pwrite(self._file, view, start)
            view, start = view[written:], start + written

    def _open(self) -> int:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(folder)
        if self._room > disk.f_bavail * disk.f_frsize * MOST_OF_THE_DISK:
            raise OSError(f"{folder} has too little room")
        if lies_in_memory(folder):
            raise OSError(f"{folder} would take memory")
        file, name = tempfile.mkstemp(dir=folder)
        try:
            os.unlink(name)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, self._room)  # so that no write of it finds the disk full
        except OSError:
            os.close(file)
            raise
        weakref.finalize(self, os.close, file)
        return file


def lies_in_memory(folder: Path) -> bool:
    """Whether a folder's file system keeps its files in memory, where Linux tells it."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        mounts = (line.split() for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines())
        return any(each[2] == number and each[each.index("-") + 1] in IN_MEMORY for each in mounts)
    return False


def aligned(size: int) -> int:
    """A size in bytes with what is left free behind it, so that the next tensor begins where an allocation could."""
    return -(-size // ALIGNMENT) * ALIGNMENT
