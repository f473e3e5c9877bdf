"""Decides how items will be made, without torch: device, precision, rows in a call, which items go together.

What is decided here may change a picture's rounding, so nothing in it depends on how many items there are or which
of them are still missing: only on the settings, the machine, the model and a picture's size.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import SettingError
from runner.settings import Settings
from runner.spec import Item
from runner.weights import COMPONENTS, ModelFiles

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LARGE_UNET = 100_000_000  # parameters; below, a CPU's bfloat16 loses more by converting than it gains by multiplying
CALL_PIXELS = {"cpu": 8192, "mps": 32768, "cuda": 65536}  # latent pixels in one UNet call
MOST_ROWS = 32
SMALL_LATENTS = 1024  # latent pixels; a wave of pictures up to this size is several UNet calls long
CALLS_IN_SMALL_WAVE = 2
STREAMED_IMAGES = 8  # in a wave whose weights are streamed: enough to hide the transfer
BUFFERED_WAVES = 8

# Rough costs in bytes: the runner itself, and what a stage holds for each pixel and channel of its widest layer.
PROCESS_BYTES = 450 << 20
UNET_HELD, DECODER_HELD = 24, 10
STREAMED_SHARE = 0.15  # of the UNet's weights are there at once when it is streamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How pictures are made on this machine; `unet_bs` is None where it follows from a picture's size."""

    device: str
    dtype: str
    turbo: bool
    unet_bs: int | None

    def rows(self, item: Item, factor: int) -> int:
        """Rows in each UNet call that this item takes part in."""
        if self.unet_bs:
            return self.unet_bs
        fitting = CALL_PIXELS[self.device.partition(":")[0]] // latent_pixels(item, factor)
        return min(MOST_ROWS, max(2, 1 << (fitting.bit_length() - 1) if fitting else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Items of one size that are made together, in UNet calls of `unet_bs` rows."""

    items: tuple[Item, ...]
    unet_bs: int


def decide(settings: Settings, model: ModelFiles, device: str, free: int | None) -> Execution:
    """How this machine should make pictures. `free` is the device's free memory in bytes, where it is known."""
    dtype = choose_dtype(settings.precision, device, model.parameters("unet"))
    limit = settings.memory or free
    turbo = settings.turbo
    if turbo is None:
        turbo = limit is None or _weight_bytes(model, dtype) * 1.5 < limit
    return Execution(device=device, dtype=dtype, turbo=turbo, unet_bs=settings.unet_bs)


def choose_dtype(precision: str, device: str, unet_parameters: int) -> str:
    """The number type of all fragments."""
    if precision == "full":
        return "float32"
    if device != "cpu":
        return "float16"
    return "bfloat16" if unet_parameters >= LARGE_UNET and _cpu_multiplies_bfloat16() else "float32"


def guess_device(setting: str) -> str:
    """The device that `auto` will most likely be; only torch can tell for certain."""
    if setting != "auto":
        return setting
    if Path("/dev/nvidiactl").exists():
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


def latent_pixels(item: Item, factor: int) -> int:
    """The number of latents of a picture, in one channel."""
    return (item.width // factor) * (item.height // factor)


def group(items: Iterable[Item], execution: Execution, factor: int) -> Iterator[Wave]:
    """Puts items into waves, lazily: of one size, and of one sampler and step count as far as these fill a wave."""
    buckets: dict[tuple[int, int], dict[tuple[str, int], list[Item]]] = {}
    for item in items:
        alike = buckets.setdefault((item.width, item.height), {})
        bucket = alike.setdefault((item.sampler, item.steps), [])
        bucket.append(item)
        size = _wave_rows(item, execution, factor)
        if _rows(bucket) >= size:
            yield _wave(alike.pop((item.sampler, item.steps)), execution, factor)
        elif sum(map(_rows, alike.values())) >= BUFFERED_WAVES * size:
            yield from _mixed_waves(alike, execution, factor)
            alike.clear()
    for alike in buckets.values():
        yield from _mixed_waves(alike, execution, factor)


def _mixed_waves(alike: dict[tuple[str, int], list[Item]], execution: Execution, factor: int) -> Iterator[Wave]:
    mixed: list[Item] = []
    for item in (item for bucket in alike.values() for item in bucket):
        mixed.append(item)
        if _rows(mixed) >= _wave_rows(item, execution, factor):
            yield _wave(mixed, execution, factor)
            mixed = []
    if mixed:
        yield _wave(mixed, execution, factor)


def _wave(items: Sequence[Item], execution: Execution, factor: int) -> Wave:
    return Wave(items=tuple(items), unet_bs=execution.rows(items[0], factor))


def _wave_rows(item: Item, execution: Execution, factor: int) -> int:
    """How many rows fill a wave: few, so that pictures come early, but enough for what is done once a wave."""
    rows = execution.rows(item, factor)
    if not execution.turbo:
        return max(rows, 2 * STREAMED_IMAGES)
    return rows * CALLS_IN_SMALL_WAVE if latent_pixels(item, factor) <= SMALL_LATENTS else rows


def _rows(items: Iterable[Item]) -> int:
    return sum(item.rows for item in items)


def memory_bytes(wave: Wave, execution: Execution, model: ModelFiles) -> int:
    """Roughly the most memory that a wave holds on its device; on a CPU that of the whole process."""
    width, height, number = wave.items[0].width, wave.items[0].height, DTYPE_BYTES[execution.dtype]
    weights = {name: model.parameters(name) * number for name in COMPONENTS}
    unet = weights["unet"] * (1 if execution.turbo else STREAMED_SHARE)
    latents = latent_pixels(wave.items[0], model.latent_factor)
    unet_widest = int(model.configs["unet"]["block_out_channels"][0])
    decoder_widest = int(model.configs["vae"]["block_out_channels"][0])
    denoising = unet + wave.unet_bs * latents * unet_widest * number * UNET_HELD
    stays = unet if execution.turbo else 0
    decoding = stays + weights["vae"] + width * height * decoder_widest * number * DECODER_HELD
    encoding = stays + weights["text_encoder"]
    process = PROCESS_BYTES if execution.device == "cpu" else 0
    return int(process + max(denoising, decoding, encoding))


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


def _weight_bytes(model: ModelFiles, dtype: str) -> int:
    return sum(model.parameters(name) for name in COMPONENTS) * DTYPE_BYTES[dtype]


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags or " bf16" in flags
