"""The process's memory on a CPU: kept for the next layer, in large pages, and swept when a ceiling is near.

What a layer makes is freed a few layers later, gigabytes in each step. glibc would give blocks of that size back to the
system, which empties each of their pages of 4 KiB before it hands it out again: a fifth of the time that a UNet takes.
Here its heap keeps all that it was given, and lies in large pages, which cost a sixth of that. `check`, called between
layers, gives back what is free only when the process is about to reach the ceiling. A process has one such heap, so the
state is the module's; with another C library nothing is changed.

    take_over(ceiling)
    begin(ceiling, burst)  # before a wave
    check()                # between layers
    live_bytes()           # what the wave could not have done without
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from dataclasses import dataclass
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


@dataclass(slots=True)
class _State:
    """The heap in use. Sizes are in bytes; `ceiling` is None where there is none."""

    libc: Any = None
    reserve: int = 0
    ceiling: int | None = None
    sweep_at: int = 0
    burst: int = 0
    besides: int = 0  # what the process holds that isn't in the heap
    most_used: int = 0
    looked: float = 0.0
    safe_until: float = 0.0
    sweeps: int = 0


_state = _State()


def take_over(ceiling: int | None) -> None:
    """Lets glibc's heap keep its memory from now on, if this process has one; `ceiling` in bytes is a hint."""
    libc = _glibc()
    if libc is None or _state.libc is not None:
        return
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)):
        libc.mallopt(option, value)
    _state.libc, _state.reserve = libc, min(MOST_RESERVED, ceiling or MOST_RESERVED)
    _reserve()


def begin(ceiling: int | None, burst: int) -> None:
    """A wave begins, with another ceiling in bytes perhaps; a layer makes at most `burst` bytes at once."""
    if _state.libc is None:
        return
    if not _state.besides:
        sweep()
        _state.besides = resident_bytes() - _used()
    _state.ceiling, _state.burst, _state.most_used = ceiling, burst, 0
    _state.sweep_at, _state.safe_until = (ceiling or 0) - burst, 0.0
    check()


def check(coming: int = 0) -> None:
    """Gives what is free back to the system, if the process with `coming` bytes more holds nearly as much as it may."""
    if _state.libc is None:
        return
    now = time.monotonic()
    if now - _state.looked > SECONDS_BETWEEN_LOOKS:
        _state.looked, _state.most_used = now, max(_state.most_used, _used())
    if _state.ceiling is None or (now < _state.safe_until and not coming):
        return
    left = _state.sweep_at - resident_bytes() - coming
    _state.safe_until = now + left / FASTEST_GROWTH
    if left < 0:
        sweep()
        _state.sweeps += 1
        held, wanted = resident_bytes(), _state.ceiling - _state.burst
        # Where that helps little, the next layers go on without it: they would do nothing else.
        grown = held + LEAST_GROWTH
        _state.sweep_at = max(wanted, grown if held > _state.ceiling else min(grown, _state.ceiling))


def sweep() -> None:
    """Gives what is free back to the system."""
    if _state.libc is not None:
        _state.libc.malloc_trim(0)
        _reserve()


def live_bytes() -> int | None:
    """The least that the wave could have been made with, as far as was seen; None where that isn't known."""
    return _state.besides + _state.most_used + _state.burst if _state.libc is not None else None


def resident_bytes() -> int:
    """What the process holds, on Linux."""
    file = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(file, 100).split()[1]) * mmap.PAGESIZE
    finally:
        os.close(file)


def watch(module: nn.Module) -> None:
    """Lets `check` be called before each layer of a module."""
    for layer in module.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_pre_hook(lambda *_: check())


@cache
def _glibc() -> Any:
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


def _used() -> int:
    return int(_state.libc.mallinfo2().uordblks)


def _reserve() -> None:
    """Lets the heap end in address space that it hasn't used yet, and that will be large pages once it is."""
    libc = _state.libc
    begin = libc.sbrk(0)
    libc.free(libc.malloc(_state.reserve))
    begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, libc.sbrk(0)
    if end > begin:
        libc.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)  # that a system has none is no error
