"""What this machine is, and how fast it multiplies in each number type; never imports torch.

The times are measured by `doctor` and kept in a small file of the user's cache folder, by the device's name and torch's
version: on another machine, or after an update, they count no more. What follows from them is the business of `plan`.

    keep("cpu", {"float32": 0.14, "bfloat16": 0.03})
    recall("cpu")["bfloat16"]
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runner.files import atomic_write
from runner.machine import threads as machine_threads
from runner.machine.cache import cache_folder
from runner.machine.memory import container_limits

# Instruction sets that say how fast a CPU multiplies, by their names in /proc/cpuinfo; the last three are ARM's.
TELLING_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16", "asimdhp", "sve", "bf16")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
THREAD_COUNTS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")  # in the environment; the first one that is set counts
THREADING = (*THREAD_COUNTS, *machine_threads.WAITING)
COMPILERS = ("c++", "g++", "clang++", "cl")
EXTRAS = ("gradio", "accelerate", "openvino")


@cache
def device_name(device: str) -> str | None:
    """What the device is called by its maker, as torch says it but without torch; None where that isn't known."""
    if device.startswith("cuda"):
        return _only(Path("/proc/driver/nvidia/gpus").glob("*/information"), "Model:")
    return _only([Path("/proc/cpuinfo")], "model name") if device == "cpu" else device


def threads() -> int:
    """How many threads torch will most likely compute with: what the environment says, else one for each core.

    Only torch can tell for certain. Two CPUs that are one core's hyperthreads count once.
    """
    for name in THREAD_COUNTS:
        with contextlib.suppress(ValueError):
            return max(1, int(os.environ.get(name, "").partition(",")[0]))  # a list is for regions inside regions
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    with contextlib.suppress(OSError):
        return len({Path(SIBLINGS.format(cpu)).read_text(encoding="ascii") for cpu in cpus})
    return len(cpus)


def instruction_sets() -> tuple[str, ...]:
    """Those of the CPU that matter here; none where Linux doesn't tell them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, words = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return tuple(name for name in TELLING_SETS if name in words.split())
    return ()


def describe() -> dict[str, Any]:
    """What is there; sizes are in bytes, and None stands for what isn't there or isn't known."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "memory_bytes": total,
        "container_limit_bytes": min((most for most, _ in container_limits() if most < total), default=None),
        "threading": {name: os.environ.get(name) for name in THREADING},
        "compiler": next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None),
        "extras": {name: _version(name) for name in EXTRAS},
    }


def free_disk(folder: Path) -> dict[str, Any]:
    """Where a folder is, or would be made, and the free bytes there."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return {"folder": str(folder), "free_bytes": shutil.disk_usage(there).free}


def recall(device: str) -> dict[str, float]:
    """Seconds of a large layer by number type, as they were measured; infinite where it came out wrong.

    Empty where nothing was measured on this machine with this torch, or it can't be read.
    """
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        found = _read().get(_key(device), {}).items()
        seconds = {str(dtype): math.inf if value is None else float(value) for dtype, value in found}
        return seconds if all(value > 0 for value in seconds.values()) else {}
    return {}


def keep(device: str, seconds: Mapping[str, float | None]) -> Path | None:
    """Keeps such times, None for what came out wrong, and says where.

    Returns None if the device has no name to know it by, or nothing can be written.
    """
    if key := _key(device):
        known = _read() | {key: dict(seconds)}
        with contextlib.suppress(OSError):
            atomic_write(_file(), json.dumps(known, indent=1).encode())
            return _file()
    return None


def _key(device: str) -> str:
    """Under which name a device is kept; empty if it has none."""
    kind = device.partition(":")[0]
    name = device_name(kind) or (platform.machine() if kind == "cpu" else "")
    sets = instruction_sets() if kind == "cpu" else ()  # clouds give CPUs of several generations one name
    return " ".join((kind, name, *sets, "torch", version("torch"))) if name else ""


def _version(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def _read() -> dict[str, dict[str, float | None]]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _file() -> Path:
    return cache_folder() / "machine.json"


def _only(files: Iterable[Path], key: str) -> str | None:
    """The value that all lines which begin with a key have in common."""
    try:
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(key)}
    return names.pop() if len(names) == 1 else None
