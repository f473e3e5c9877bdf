"""How much memory the machine, the container and this process have: every reader of /proc and of cgroups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

CGROUPS = (  # of a container: the most memory that it may take, and what it has taken (version 2 and 1)
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_main_memory() -> int | None:
    """The machine's free memory in bytes, where Linux tells it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([available, *(most - used for most, used in container_limits())])


def container_limits(cgroups: Iterable[tuple[str, str]] = CGROUPS) -> Iterator[tuple[int, int]]:
    """The most bytes that a container may take, and what it has taken; none outside of containers."""
    for most, used in cgroups:
        with contextlib.suppress(OSError, ValueError):  # `max` is no number
            yield int(Path(most).read_text()), int(Path(used).read_text())


def status_bytes(key: str) -> int | None:
    """A size that Linux says of this process: `VmRSS` is what it holds, `VmHWM` the most that it has held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
