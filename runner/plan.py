"""Decides how items will be made, without torch: device, precision, where the weights are, which items go together.

A layout says how pictures of one size are made. Layouts are tried from the fastest to the one that needs the least
memory, and the first that keeps the ceiling is taken. What may change a picture's rounding, `unet_bs` above all, is
the last thing to be changed, and is planned by the settings, the machine, the model and a picture's size alone: never
by how many items there are or which of them are still missing, by what is free or what was measured. These can only
lower it, and the record says so.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from runner import machine
from runner.costs import INDUCTOR, NONE, OPENVINO, PROCESS_BYTES, STAYS, VISITS, WALKS, Costs, model_costs
from runner.errors import SettingError, show_size
from runner.settings import Settings
from runner.spec import Item
from runner.weights import ModelFiles

# Parameters; below, a CPU's bfloat16 loses more by converting than it gains by multiplying, and threads that share a
# layer wait for each other.
LARGE_UNET = 100_000_000
LEAST_CPU_GAIN = 1.1  # how many times as fast as float32 half precision has to be to be chosen
LEAST_GAIN = 0.8  # elsewhere, where half the memory is a gain as well
CALL_PIXELS = {"cpu": 8192, "mps": 32768, "cuda": 65536}  # latent pixels in one UNet call
LEAST_ROWS, MOST_ROWS = 1, 32
LANE_PIXELS = 2048  # the same for a call that has one thread
SMALL_LATENTS = 1024  # latent pixels; a wave of pictures up to this size is several UNet calls long
CALLS_IN_SMALL_WAVE = 2
STREAMED_ROWS = 16  # in a wave whose weights are streamed: enough to hide the transfer
BUFFERED_WAVES = 8
MIB = 1 << 20
SPARED = 0.85  # of the memory that is free, where nobody names a ceiling

ALL_STAY = {"text_encoder": STAYS, "unet": STAYS, "vae": STAYS}
UNET_STAYS = {"text_encoder": VISITS, "unet": STAYS, "vae": VISITS}
ALL_LEAVE = {"text_encoder": WALKS, "unet": WALKS, "vae": VISITS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How pictures of one size are made.

    `modes` says of each component whether it stays, visits or walks; a UNet call has `unet_bs` rows, a wave up to
    `wave_rows`; `peak` is the memory in bytes that this should take, on a CPU that of the whole process.
    """

    modes: Mapping[str, str]
    unet_bs: int
    wave_rows: int
    peak: int

    @property
    def turbo(self) -> bool:
        """Whether the UNet stays on the device."""
        return self.modes["unet"] == STAYS

    @property
    def way(self) -> tuple[object, ...]:
        """What it is, without what it should take."""
        return *self.modes.items(), self.unet_bs, self.wave_rows

    def __str__(self) -> str:
        way = "the UNet on the device" if self.turbo else "the UNet streamed"
        return f"{way}, unet_bs={self.unet_bs} and up to {self.wave_rows} rows a wave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How pictures are made on this machine. `turbo`, `unet_bs` and `limit` are None where they are free.

    `limit` is the ceiling in bytes; where it is only `advice`, less than everything is done to keep it, but no error is
    made of it.
    """

    dtype: str
    costs: Costs
    turbo: bool | None = None
    unet_bs: int | None = None
    limit: int | None = None
    advice: bool = False

    @property
    def device(self) -> str:
        return self.costs.device

    @property
    def compiler(self) -> str:
        return self.costs.compiler

    @property
    def lanes(self) -> int:
        return self.costs.lanes

    def layouts(self, width: int, height: int) -> Iterator[Layout]:
        """The ways to make pictures of a size, from the fastest to the one that needs the least memory."""
        rows = self.unet_bs or self._most_rows(width, height)
        while rows:
            for modes in self._modes():
                for wave_rows in _wave_sizes(self._wave_rows(width, height, rows, modes), rows):
                    peak = self.costs.peak(modes, width, height, rows, wave_rows)
                    yield Layout(modes=modes, unet_bs=rows, wave_rows=wave_rows, peak=peak)
            rows = 0 if self.unet_bs else rows // 2

    def planned_rows(self, width: int, height: int) -> int:
        """The rows of a UNet call as they should be in every run with these settings: `unet_bs` unless it's lowered."""
        asked = replace(self, limit=None if self.advice else self.limit, costs=replace(self.costs, measured={}))
        layout = asked._fastest(asked.layouts(width, height))
        return layout.unet_bs if layout else self.unet_bs or LEAST_ROWS

    def layout(self, width: int, height: int) -> Layout:
        """The fastest layout that keeps the ceiling.

        Raises:
            SettingError: none does; it names the least that one can.
        """
        planned = self.planned_rows(width, height)
        layouts = [layout for layout in self.layouts(width, height) if layout.unet_bs <= planned]
        if layout := self._fastest(layouts):
            return layout
        least = min(layouts, key=lambda layout: layout.peak)
        if self.advice:
            return least
        raise SettingError(
            f"memory={show_size(self.limit or 0)}: pictures of {width}x{height} need at least "
            f"memory={-(-least.peak // MIB)}MiB here" + (" with these settings" if self.unet_bs or self.turbo else "")
        )

    def _fastest(self, layouts: Iterable[Layout]) -> Layout | None:
        return next((layout for layout in layouts if self.limit is None or layout.peak <= self.limit), None)

    def _modes(self) -> Sequence[Mapping[str, str]]:
        if self.compiler != NONE:
            return ALL_STAY, UNET_STAYS
        if self.turbo is None:
            return ALL_STAY, UNET_STAYS, ALL_LEAVE
        return (ALL_STAY, UNET_STAYS) if self.turbo else (ALL_LEAVE,)

    def _most_rows(self, width: int, height: int) -> int:
        pixels = LANE_PIXELS if self.lanes else CALL_PIXELS[self.device.partition(":")[0]]
        fitting = pixels // self._latents(width, height)
        return min(MOST_ROWS, max(2, 1 << (fitting.bit_length() - 1) if fitting else 0))

    def _wave_rows(self, width: int, height: int, rows: int, modes: Mapping[str, str]) -> int:
        """How many rows fill a wave: few, so that pictures come early, but enough for what is done once a wave."""
        if modes["unet"] == WALKS:
            return max(rows * max(1, self.lanes), STREAMED_ROWS)
        small = self._latents(width, height) <= SMALL_LATENTS
        return rows * max(CALLS_IN_SMALL_WAVE if small else 1, self.lanes)

    def _latents(self, width: int, height: int) -> int:
        return (width // self.costs.latent_factor) * (height // self.costs.latent_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Items of one size that are made together, as `layout` says."""

    items: tuple[Item, ...]
    layout: Layout

    @property
    def unet_bs(self) -> int:
        return self.layout.unet_bs


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
    )


def in_full_precision(execution: Execution) -> Execution:
    """The same in float32, and not compiled: it is for few pictures."""
    return replace(execution, dtype="float32", costs=replace(execution.costs.in_dtype("float32"), compiler=NONE))


def choose_lanes(device: str, unet_parameters: int, compiler: str) -> int:
    """How many calls are made side by side, each on one thread; 0 where one call has all threads, or isn't on a CPU.

    Code that inductor made shares its loops among threads of its own.
    """
    small = device == "cpu" and unet_parameters < LARGE_UNET
    return machine.threads() if small and compiler != INDUCTOR else 0


def choose_compiler(settings: Settings, device: str) -> str:
    """What compiles the UNet. `auto` is nothing: whether it pays depends on how many pictures are left.

    Raises:
        SettingError: what is asked for isn't there, or doesn't go together.
    """
    if not settings.compile:
        return NONE
    asked = f"compile={str(settings.compile).lower()}"
    if settings.turbo is False:
        raise SettingError(f"{asked} with turbo=false: a compiled UNet stays on the device; take one of them back")
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


def choose_dtype(precision: str, device: str, unet_parameters: int, measured: Mapping[str, float] | None = None) -> str:
    """The number type of all fragments.

    `measured` are a large layer's seconds by number type, or else those that `doctor` kept; where there are none, a
    CPU's flags say whether it is good at bfloat16, and other devices are taken to be good at float16.
    """
    if precision == "full" or (device == "cpu" and unet_parameters < LARGE_UNET):
        return "float32"
    half = half_type(device)
    seconds = machine.recall(device) if measured is None else measured
    if seconds.keys() >= {half, "float32"}:
        good = seconds["float32"] >= seconds[half] * (LEAST_CPU_GAIN if device == "cpu" else LEAST_GAIN)
    else:
        good = device != "cpu" or _cpu_multiplies_bfloat16()
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


def free_main_memory() -> int | None:
    """The machine's free memory in bytes, where Linux tells it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(available, *_container_limits()) if _container_limits() else available


def _container_limits() -> list[int]:
    """What a container may still take."""
    limits = []
    for most, used in machine.CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # `max` is no number
            limits.append(int(Path(most).read_text()) - int(Path(used).read_text()))
    return limits


def group(items: Iterable[Item], execution: Execution) -> Iterator[Wave]:
    """Puts items into waves, lazily: of one size, and of one sampler and step count as far as these fill a wave."""
    buckets: dict[tuple[int, int], dict[tuple[str, int], list[Item]]] = {}
    layouts: dict[tuple[int, int], Layout] = {}
    for item in items:
        size = (item.width, item.height)
        if size not in layouts:
            layouts[size] = execution.layout(*size)
        layout = layouts[size]
        alike = buckets.setdefault(size, {})
        bucket = alike.setdefault((item.sampler, item.steps), [])
        bucket.append(item)
        if _rows(bucket) >= layout.wave_rows:
            full, alike[item.sampler, item.steps] = _cut(bucket, layout)
            yield full
        elif sum(map(_rows, alike.values())) >= BUFFERED_WAVES * layout.wave_rows:
            yield from split((item for bucket in alike.values() for item in bucket), layout)
            alike.clear()
    for size, alike in buckets.items():
        yield from split((item for bucket in alike.values() for item in bucket), layouts[size])


def split(items: Iterable[Item], layout: Layout) -> Iterator[Wave]:
    """Waves of items of one size, in their order."""
    filling: list[Item] = []
    for item in items:
        filling.append(item)
        if _rows(filling) >= layout.wave_rows:
            full, filling = _cut(filling, layout)
            yield full
    if filling:
        yield Wave(items=tuple(filling), layout=layout)


def _cut(items: list[Item], layout: Layout) -> tuple[Wave, list[Item]]:
    """A full wave, and the last item if that is a row too many for it."""
    most = len(items) - 1 if _rows(items) > layout.wave_rows and len(items) > 1 else len(items)
    return Wave(items=tuple(items[:most]), layout=layout), items[most:]


def _wave_sizes(most: int, rows: int) -> Iterator[int]:
    """Rows in a wave, from the most that is wanted down to one call's."""
    while most > rows:
        yield most
        most = max(rows, most // 2)
    yield rows


def _rows(items: Iterable[Item]) -> int:
    return sum(item.rows for item in items)


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


def _cpu_multiplies_bfloat16() -> bool:
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(machine.instruction_sets())
