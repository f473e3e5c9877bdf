"""What `auto` means on this machine: the device, the number type, the compiler, and how many calls go side by side.

Never imports torch: `plan` asks as well.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from runner.errors import SettingError
from runner.machine import describe, speeds
from runner.model.files import ModelFiles
from runner.planning.costs import PROCESS_BYTES, model_costs
from runner.planning.layouts import Execution
from runner.record import INDUCTOR, NONE, OPENVINO
from runner.settings import Settings

# Parameters; below, a CPU's bfloat16 loses more by converting than it gains by multiplying, and threads that share a
# layer wait for each other.
LARGE_UNET = 100_000_000
BFLOAT16_SETS = {"avx512_bf16", "amx_bf16", "bf16"}  # of CPUs that multiply it
LEAST_CPU_GAIN = 1.1  # how many times as fast as float32 half precision has to be to be chosen
LEAST_GAIN = 0.8  # elsewhere, where half the memory is a gain as well
SPARED = 0.85  # of the memory that is free, where nobody names a ceiling


def decide(settings: Settings, model: ModelFiles, device: str, free: int | None, base: int | None = None) -> Execution:
    """How this machine should make pictures.

    `free` is the device's free memory in bytes, and `base` what the process holds already, where these are known; a
    process that has read little of its libraries yet will.

    Raises:
        SettingError: the UNet can't be compiled as the settings want it.
    """
    dtype = choose_dtype(settings.precision, device, model.parameters("unet"))
    limit = settings.memory or (int(free * SPARED) if free is not None else None)
    compiler = choose_compiler(settings, device)
    lanes = choose_lanes(device, model.parameters("unet"), compiler)
    return Execution(
        dtype=dtype,
        costs=model_costs(model, device, dtype, max(PROCESS_BYTES, base or 0), compiler, lanes),
        turbo=settings.turbo,
        unet_bs=settings.unet_bs,
        limit=limit,
        advice=settings.memory is None,
        processors=describe.processors(device),
    )


def in_full_precision(execution: Execution) -> Execution:
    """The same in float32, and not compiled: it is for few pictures."""
    return replace(execution, dtype="float32", costs=replace(execution.costs.in_dtype("float32"), compiler=NONE))


def choose_lanes(device: str, unet_parameters: int, compiler: str) -> int:
    """How many calls are made side by side, each on one thread; 0 where one call has all threads, or isn't on a CPU.

    Code that inductor made shares its loops among threads of its own.
    """
    small = device == "cpu" and unet_parameters < LARGE_UNET
    return describe.threads() if small and compiler != INDUCTOR else 0


def choose_compiler(settings: Settings, device: str) -> str:
    """What compiles the UNet. `auto` is nothing: whether it pays depends on how many pictures are left.

    Raises:
        SettingError: what is asked for isn't there, or doesn't go together.
    """
    if not settings.compile:
        return NONE
    asked = f"compile={str(settings.compile).lower()}"
    if settings.turbo is False:
        raise SettingError(
            f"{asked} can't be combined with turbo=false: a compiled UNet has to stay on the device. Drop one of them"
        )
    if settings.compile is True:
        if device == "cpu" and not _can_build():
            raise SettingError(f"{asked}: needs a C++ compiler (g++, or what CXX names) and the headers of Python")
        return INDUCTOR
    if device != "cpu":
        raise SettingError(f"{asked}: is for device=cpu; on {device} there is compile=true")
    if not find_spec("openvino"):
        raise SettingError(f"{asked}: OpenVINO is not installed; pip install 'manifest-runner[openvino]'")
    return OPENVINO


def _can_build() -> bool:
    """Whether torch's inductor finds what it builds with, where it looks for it."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return bool(shutil.which(compiler)) and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def choose_dtype(
    precision: str,
    device: str,
    unet_parameters: int,
    measured: Mapping[str, float] | None = None,
    sets: Collection[str] | None = None,
) -> str:
    """The number type of all fragments.

    `measured` are a large layer's seconds by number type, by default those that `doctor` kept. Without them a CPU's
    instruction `sets` decide about bfloat16, and other devices get float16.
    """
    if precision == "full" or (device == "cpu" and unet_parameters < LARGE_UNET):
        return "float32"
    half = half_type(device)
    seconds = speeds.recall(device) if measured is None else measured
    if seconds.keys() >= {half, "float32"}:
        good = seconds["float32"] >= seconds[half] * (LEAST_CPU_GAIN if device == "cpu" else LEAST_GAIN)
    else:
        good = device != "cpu" or not BFLOAT16_SETS.isdisjoint(describe.instruction_sets() if sets is None else sets)
    return half if good else "float32"


def half_type(device: str) -> str:
    """The number type of 16 bits that a device may be good at."""
    return "bfloat16" if device == "cpu" else "float16"


def guess_device(setting: str) -> str:
    """The device that `auto` will most likely be; only torch can tell for certain."""
    if setting != "auto":
        return setting
    if Path("/dev/nvidiactl").exists():
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


def check_device(setting: str, available: Sequence[str]) -> str:
    """The device for a setting, given those that torch has (`cuda:0`, `mps`, `cpu`), best first.

    Raises:
        SettingError: the machine has no such device.
    """
    if setting == "auto":
        return available[0]
    wanted = "cuda:0" if setting == "cuda" else setting
    if wanted not in available:
        raise SettingError(f"device={setting}: this machine has no such device; it has {', '.join(available)}")
    return wanted
