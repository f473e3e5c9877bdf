"""The process's memory on a CPU: kept for the next layer, in large pages, and swept when a ceiling is near.

What a layer makes is freed a few layers later, gigabytes in each step. glibc would give blocks of that size back to the
system, which empties each of their pages of 4 KiB before it hands it out again: a fifth of the time that a UNet takes.
Here its heap keeps all that it was given, and lies in large pages, which cost a sixth of that. `check`, called between
layers, gives back what is free only when the process is about to reach the ceiling. With another C library nothing is
changed.

    heap = process_heap()
    heap.take_over(ceiling)
    heap.begin(ceiling, burst)  # before a wave
    heap.check()                # between layers
    heap.live_bytes()           # what the wave could not have done without
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from functools import cache
from typing import Any

from torch import nn

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
NEVER = -1
MOST_RESERVED = 4 << 30  # bytes of address space; they cost nothing until they are used
LEAST_GROWTH = 48 << 20  # bytes between two sweeps
FASTEST_GROWTH = 16 << 30  # bytes a second: pages are emptied before they are handed out
SECONDS_BETWEEN_LOOKS = 0.2  # at what is in use, which takes a millisecond


class _Mallinfo2(ctypes.Structure):
    """What glibc knows of its heap; `uordblks` are the bytes in use."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


class Heap:
    """The heap of a process with glibc. Without `libc` nothing is done: another C library, or another device.

    Sizes are in bytes. `sweeps` counts how often a ceiling was near.
    """

    def __init__(self, libc: Any = None) -> None:
        self._libc = libc
        self._reserve_bytes = 0  # 0 until `take_over`
        self._ceiling: int | None = None
        self._sweep_at = self._burst = self._most_used = 0
        self._besides = 0  # what the process holds that isn't in the heap
        self._looked = self._safe_until = 0.0
        self.sweeps = 0

    def take_over(self, ceiling: int | None) -> None:
        """Lets the heap keep its memory from now on; `ceiling` in bytes is a hint."""
        if self._libc is None or self._reserve_bytes:
            return
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)):
            self._libc.mallopt(option, value)
        self._reserve_bytes = min(MOST_RESERVED, ceiling or MOST_RESERVED)
        self._reserve()

    def begin(self, ceiling: int | None, burst: int) -> None:
        """A wave begins, perhaps with another ceiling in bytes; a layer makes at most `burst` bytes at once."""
        if not self._reserve_bytes:
            return
        if not self._besides:
            self.sweep()
            self._besides = resident_bytes() - self._used()
        self._ceiling, self._burst, self._most_used = ceiling, burst, 0
        self._sweep_at, self._safe_until = (ceiling or 0) - burst, 0.0
        self.check()

    def check(self, coming: int = 0) -> None:
        """Gives free memory back to the system, if the process with `coming` bytes more is near its ceiling."""
        if not self._reserve_bytes:
            return
        now = time.monotonic()
        if now - self._looked > SECONDS_BETWEEN_LOOKS:
            self._looked, self._most_used = now, max(self._most_used, self._used())
        if self._ceiling is None or (now < self._safe_until and not coming):
            return
        left = self._sweep_at - resident_bytes() - coming
        self._safe_until = now + left / FASTEST_GROWTH
        if left < 0:
            self.sweep()
            self.sweeps += 1
            held, wanted = resident_bytes(), self._ceiling - self._burst
            # Where that helps little, the next layers go on without it: else they would only sweep.
            grown = held + LEAST_GROWTH
            self._sweep_at = max(wanted, grown if held > self._ceiling else min(grown, self._ceiling))

    def sweep(self) -> None:
        """Gives free memory back to the system."""
        if self._reserve_bytes:
            self._libc.malloc_trim(0)
            self._reserve()

    def live_bytes(self) -> int | None:
        """The least that the wave could have been made with, as far as was seen; None where that isn't known."""
        return self._besides + self._most_used + self._burst if self._reserve_bytes else None

    def watch(self, module: nn.Module) -> None:
        """Calls `check` before each layer of a module."""
        for layer in module.modules():
            if not any(True for _ in layer.children()):
                layer.register_forward_pre_hook(lambda *_: self.check())

    def _used(self) -> int:
        return int(self._libc.mallinfo2().uordblks)

    def _reserve(self) -> None:
        """Lets the heap end in address space that it hasn't used yet, and that will be large pages once it is."""
        libc = self._libc
        begin = libc.sbrk(0)
        libc.free(libc.malloc(self._reserve_bytes))
        begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, libc.sbrk(0)
        if end > begin:
            libc.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)  # that a system has none is no error


@cache
def process_heap() -> Heap:
    """The heap of this process: it has one."""
    return Heap(glibc())


def resident_bytes() -> int:
    """What the process holds, on Linux."""
    file = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(file, 100).split()[1]) * mmap.PAGESIZE
    finally:
        os.close(file)


@cache
def glibc() -> Any:
    """glibc, if this is a Linux with a version of it that has what is needed."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = _Mallinfo2
        libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
        libc.malloc.argtypes = libc.malloc_trim.argtypes = [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.sbrk.argtypes = [ctypes.c_ssize_t]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        resident_bytes()
    except (OSError, AttributeError):
        return None
    return libc
