"""Weights as the CPU multiplies by them, in a file without a name that lives no longer than the process.

A walk needs every weight once a step; to convert and pack it each time takes a tenth of the step. Here a part's weights
are written down after the first time, in their number type and oneDNN's order, and from then on one plain read brings
them to where they are used. The file is in the user's cache folder; where it finds no room there, nothing is kept.

    file.keep(name, part)          # while the weights are there
    file.bring(name, allocate)     # by their names in the part; None if they weren't kept
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from runner import opaque
from runner.layers import Packed, packed_in
from runner.weights import cache_folder

ALIGNMENT = 512  # bytes
MOST_OF_THE_DISK = 0.5  # of what is free


class _Kept(NamedTuple):
    """One weight: where its bytes begin among its part's, how many they are, and what they mean."""

    start: int
    size: int
    form: opaque.Form
    packed_for: torch.Size | None


class _Place(NamedTuple):
    """A part's piece of the file, and what lies in it."""

    start: int
    room: int
    kept: dict[str, _Kept]

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

    def keep(self, name: str, part: nn.Module) -> None:
        """Writes a part's weights down as they are now, unless they are in the file just so."""
        if self._closed:
            return
        packed = packed_in(part)
        tensors = {own: packed[own].weight if own in packed else tensor for own, tensor in part.named_parameters()}
        kept, size = {}, 0
        for own, tensor in tensors.items():
            shape = packed[own].shape if own in packed else None
            kept[own] = _Kept(size, len(opaque.bytes_of(tensor)), opaque.form_of(tensor), shape)
            size += -(-kept[own].size // ALIGNMENT) * ALIGNMENT
        old = self._places.get(name)
        if old and old.kept == kept:
            return
        fits = old is not None and size <= old.room
        place = _Place(old.start, old.room, kept) if old and fits else _Place(self._end, size, kept)
        self._places.pop(name, None)
        try:
            for own, tensor in tensors.items():
                self._write(opaque.bytes_of(tensor), place.start + kept[own].start)
        except OSError:
            self._closed = True
            return
        self._places[name], self._end = place, max(self._end, place.start + place.room)

    def bring(self, name: str, allocate: Callable[[int], Tensor]) -> dict[str, Tensor | Packed] | None:
        """A part's weights by their names in it, read into memory uint8 [size]; None if they can't be had here."""
        place = self._places.get(name)
        if place is None or self._file is None:
            return None
        memory = allocate(place.size)
        try:
            self._read(memory.numpy().data, place.start)
            return {own: _over(memory, kept) for own, kept in place.kept.items()}
        except (OSError, RuntimeError):
            self._places.pop(name, None)
            return None

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
        file, name = tempfile.mkstemp(dir=folder)
        weakref.finalize(self, os.close, file)
        os.unlink(name)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, self._room)  # so that no write of it finds the disk full
        return file


def _over(memory: Tensor, kept: _Kept) -> Tensor | Packed:
    tensor = opaque.make_over(memory[kept.start : kept.start + kept.size], kept.form)
    return Packed(tensor, kept.packed_for, memory) if tensor.is_mkldnn else tensor
