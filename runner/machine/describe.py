"""What this machine is: its devices' names, cores, instruction sets, memory and disks. Never imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runner.machine import threads as machine_threads
from runner.machine.memory import container_limits

# Instruction sets that tell how fast a CPU multiplies, by their names in /proc/cpuinfo; the last three are ARM's.
TELLING_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16", "asimdhp", "sve", "bf16")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
THREAD_COUNTS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")  # in the environment; the first one that is set counts
THREADING = (*THREAD_COUNTS, *machine_threads.WAITING)
COMPILERS = ("c++", "g++", "clang++", "cl")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
MULTIPROCESSORS = 16  # the attribute's number in cuda.h
EXTRAS = ("gradio", "accelerate", "openvino")


@cache
def device_name(device: str) -> str | None:
    """The maker's name for a device, as torch reports it, but without torch. None where it is unknown."""
    if device.startswith("cuda"):
        return _only(Path("/proc/driver/nvidia/gpus").glob("*/information"), "Model:")
    return _only([Path("/proc/cpuinfo")], "model name") if device == "cpu" else device


@cache
def processors(device: str) -> int | None:
    """A card's multiprocessors, as its driver says without being given any work; None for other devices."""
    number = device.partition(":")[2] or "0"
    return _ask_driver(int(number), MULTIPROCESSORS) if device.startswith("cuda") else None


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None where Linux doesn't tell it."""
    with contextlib.suppress(OSError):
        words = NVIDIA_DRIVER.read_text(encoding="ascii", errors="replace").split()
        return next((word for word in words if re.fullmatch(r"\d+(\.\d+)+", word)), None)
    return None


def _ask_driver(number: int, attribute: int) -> int | None:
    found = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGetAttribute(ctypes.byref(found), attribute, number)
    except (OSError, AttributeError):
        return None
    return None if failed else found.value


def threads(siblings: str = SIBLINGS) -> int:
    """The number of threads that torch will most likely compute with: the environment's, or else one for each core.

    Only torch knows for certain. `siblings` is as `cores` has it.
    """
    for name in THREAD_COUNTS:
        with contextlib.suppress(ValueError):
            return max(1, int(os.environ.get(name, "").partition(",")[0]))  # a list is for regions inside regions
    return cores(siblings)


def cores(siblings: str = SIBLINGS) -> int:
    """The cores that this process may use.

    Two hyperthreads of a core count once; `siblings` is the file that lists them, with `{}` for the CPU's number.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    with contextlib.suppress(OSError):
        return len({Path(siblings.format(cpu)).read_text(encoding="ascii") for cpu in cpus})
    return len(cpus)


def instruction_sets() -> tuple[str, ...]:
    """The CPU's instruction sets among `TELLING_SETS`; none where Linux doesn't list them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, words = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return tuple(name for name in TELLING_SETS if name in words.split())
    return ()


def describe(extras: Iterable[str] = EXTRAS) -> dict[str, Any]:
    """The machine as `doctor` prints it. Sizes are in bytes; None stands for what is absent or unknown.

    `extras` are the optional libraries to look for.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "memory_bytes": total,
        "container_limit_bytes": min((most for most, _ in container_limits() if most < total), default=None),
        "threading": {name: os.environ.get(name) for name in THREADING},
        "compiler": next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None),
        "extras": {name: _version(name) for name in extras},
    }


def free_disk(folder: Path) -> dict[str, Any]:
    """The absolute path of a folder, which need not exist, and the free bytes of its disk."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return {"folder": str(folder), "free_bytes": shutil.disk_usage(there).free}


def _version(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def _only(files: Iterable[Path], key: str) -> str | None:
    """The value that all lines which begin with a key have in common."""
    try:
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(key)}
    return names.pop() if len(names) == 1 else None
