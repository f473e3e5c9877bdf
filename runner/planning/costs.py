"""What making pictures costs in memory: from a model's configuration, before anything is loaded; never imports torch.

The numbers of the formulas were measured with Stable Diffusion v1. `measured` corrects them: the peaks of earlier runs
on this machine, which `remember` keeps in a small file of the user's cache folder. `layouts` chooses by these costs.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from runner.files import atomic_write
from runner.machine.cache import cache_folder
from runner.machine.describe import device_name
from runner.model.architecture import V1, Memory
from runner.model.files import ModelFiles
from runner.record import NONE, OPENVINO

STAYS, VISITS, WALKS = "stays", "visits", "walks"  # what a component does on the device, see `device.component`
SLOTS = 2  # each as large as the largest unit
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

PROCESS_BYTES = 480 << 20  # Python and its libraries, once they were used, with the kernels that they make
LEAST_STAGE = 152 << 20  # on a CPU, of the smallest model: more kernels, gaps between blocks in use
OPENVINO_BYTES = 160 << 20  # its library, and the kernels that it makes for one shape
STRIPS_IN_BURST = 8
STRIPS_HELD = 12  # strips, while one is made from another
STRIP_ELEMENTS = {"cpu": 1 << 20}  # numbers in a strip of a large picture: on a CPU about what its caches hold
OTHER_STRIP_ELEMENTS = 1 << 24
DECODED_PIXELS = {"cuda": 1 << 18}  # in one call of the decoder; a larger picture is decoded in strips
OTHER_DECODED_PIXELS = 1 << 16
MOST_DECODED_ROWS = 4


class Peak(NamedTuple):
    """A kind of wave with a measured peak: how its pictures are made (`group`), their size in pixels, and its rows."""

    group: tuple[str, ...]
    width: int
    height: int
    rows: int
    wave_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """A model's costs on a device, in bytes. `base` is what the process holds without it, 0 where that doesn't count.

    `upcast` says whether the autoencoder is in float32 where the rest is in float16. `lanes` is how many calls of a
    module are made side by side, each on one thread; 0 where one call has all threads. `measured` are peaks of earlier
    waves by their `key`; `factors` are the constants of the family's formula.
    """

    device: str
    dtype: str
    base: int
    latent_factor: int
    weights: Mapping[str, int]
    largest_units: Mapping[str, int]
    unet: Mapping[str, Any]
    decoder_channels: tuple[int, ...]
    model: str = ""
    compiler: str = NONE
    lanes: int = 0
    upcast: bool = False
    measured: Mapping[Peak, int] = field(default_factory=dict)
    factors: Memory = V1.memory

    def peak(self, modes: Mapping[str, str], width: int, height: int, rows: int, wave_rows: int) -> int:
        """The most that a wave holds: `wave_rows` rows of one size, in UNet calls of `rows` rows."""
        found = self.measured.get(self.key(modes, width, height, rows, wave_rows))
        if found is None:
            found = int(self._formula(modes, width, height, rows, wave_rows) * self._correction(modes))
        least = LEAST_STAGE if self.device == "cpu" else 0  # what is measured doesn't see the gaps between what is used
        return max(found, self._staying(modes) + least)

    def side_by_side(self, rows: int, wave_rows: int) -> int:
        """How many calls of `rows` rows are made at a time in a wave of `wave_rows`."""
        return max(1, min(self.lanes, wave_rows // rows))

    def burst(self, width: int, height: int, rows: int, wave_rows: int) -> int:
        """The most bytes that layers make at once: the UNet's widest, with what it is made from, and the decoder's."""
        widest = self._unet_map(width, height, rows) * self.factors.widest_layer
        if width * height > decoded_pixels(self.device):
            decoded = STRIPS_IN_BURST * self._strip()
        else:
            decoded = self._decoder_map(width, height) * self.factors.decoder_held
        return (widest + decoded) * self.side_by_side(rows, wave_rows)

    def key(self, modes: Mapping[str, str], width: int, height: int, rows: int, wave_rows: int) -> Peak:
        """What such a wave's peak is remembered under."""
        kind = self.device.partition(":")[0]
        if kind == "cuda":
            kind = device_name(self.device) or kind  # kernels, and what they take, differ between cards
        group = (kind, self.compiler, str(self.lanes), self.model, self.dtype, *modes.values())
        return Peak(group, width, height, rows, wave_rows)

    def in_dtype(self, dtype: str) -> Costs:
        """The costs in another number type."""
        made = replace(self, dtype=dtype)
        ratios = {name: (self._number(name), made._number(name)) for name in self.weights}
        weights = {name: size // ratios[name][0] * ratios[name][1] for name, size in self.weights.items()}
        largest = {name: size // ratios[name][0] * ratios[name][1] for name, size in self.largest_units.items()}
        return replace(self, dtype=dtype, weights=weights, largest_units=largest)

    def _correction(self, modes: Mapping[str, str]) -> float:
        """How far the formula was off for the waves that were measured, at worst."""
        group = self.key(modes, 0, 0, 0, 0).group
        measured = ((key[1:], found) for key, found in self.measured.items() if key.group == group)
        return max((found / self._formula(modes, *wave) for wave, found in measured), default=1.0)

    def _formula(self, modes: Mapping[str, str], width: int, height: int, rows: int, wave_rows: int) -> int:
        at_once = self.side_by_side(rows, wave_rows)
        waiting = max(0, wave_rows - rows * at_once) if modes["unet"] == WALKS else 0
        denoising = self._unet_map(width, height, rows) * self.factors.unet_held
        stages = dict.fromkeys(modes, self.factors.text_bytes) | {
            "unet": denoising * at_once + self._waiting(width, height) * waiting,
            "vae": self._decoding(width, height) * at_once,
        }
        # Between its own stage and the last one a wave keeps its latents and prompts, which are small.
        return self._staying(modes) + max(stages[name] + self._brought(name, modes[name]) for name in modes)

    def _staying(self, modes: Mapping[str, str]) -> int:
        """What is there in every stage."""
        weights = sum(self.weights[name] for name, mode in modes.items() if mode == STAYS)
        return self.base + weights + self._compiled_copy()

    def _brought(self, name: str, mode: str) -> int:
        """What a component that doesn't stay has there at once: units, or all that a stage needs."""
        if mode == STAYS:
            return 0
        if mode == WALKS:
            # On a CPU, where weights are packed: packed once more, and the largest one between.
            units = SLOTS * (2 if self.device == "cpu" else 1)
            return min(self.weights[name], units * self.largest_units[name])
        return self.weights[name] * 2 // 3 if name == "vae" else self.weights[name]  # the larger half is the decoder

    def _compiled_copy(self) -> int:
        """Compiled code on a CPU has weights of its own, in the order in which it reads them."""
        if self.compiler == NONE or self.device != "cpu":
            return 0
        return self.weights["unet"] + (OPENVINO_BYTES if self.compiler == OPENVINO else 0)

    def _number(self, component: str) -> int:
        """The bytes of one of a component's numbers."""
        return DTYPE_BYTES["float32" if component == "vae" and self.upcast and self.dtype == "float16" else self.dtype]

    def _latents(self, width: int, height: int) -> int:
        return (width // self.latent_factor) * (height // self.latent_factor)

    def _unet_map(self, width: int, height: int, rows: int) -> int:
        """One map of the UNet's first block, the largest: what a step holds, and what a layer makes, are some of it."""
        channels = int(self.unet["block_out_channels"][0])
        return rows * self._latents(width, height) * channels * DTYPE_BYTES[self.dtype]

    def _decoder_map(self, width: int, height: int) -> int:
        """One map of the decoder's last block, the largest of a call that decodes whole pictures."""
        pixels = decode_rows(width, height, self.device) * width * height
        return pixels * self.decoder_channels[0] * self._number("vae")

    def _strip(self) -> int:
        """One strip of a large picture."""
        return strip_elements(self.device) * self._number("vae")

    def _waiting(self, width: int, height: int) -> int:
        """What a row that waits for its next unit holds: the skip connections, and the hidden states."""
        channels = [int(number) for number in self.unet["block_out_channels"]]
        layers = int(self.unet.get("layers_per_block", 2))
        latents = self._latents(width, height)
        held = 2 * channels[0] * latents
        for level, number in enumerate(channels):
            held += layers * number * (latents >> 2 * level)
            if level < len(channels) - 1:
                held += number * (latents >> 2 * (level + 1))
        return held * DTYPE_BYTES[self.dtype]

    def _decoding(self, width: int, height: int) -> int:
        if width * height <= decoded_pixels(self.device):
            return self._decoder_map(width, height) * self.factors.decoder_held * 2
        widest = max(self.decoder_channels[min(1, len(self.decoder_channels) - 1)], self.decoder_channels[0])
        return width * height * widest * self._number("vae") + STRIPS_HELD * self._strip()


def model_costs(
    model: ModelFiles, device: str, dtype: str, base: int = PROCESS_BYTES, compiler: str = NONE, lanes: int = 0
) -> Costs:
    """The costs of a model on a device; `base` is what the process holds without it, and counts on a CPU."""
    parts = model.family.components
    numbers = dict.fromkeys(parts, DTYPE_BYTES[dtype])
    if upcasts(model, dtype):
        numbers["vae"] = DTYPE_BYTES["float32"]
    weights = {name: model.parameters(name) * number for name, number in numbers.items()}
    largest = {
        name: max(
            weights[name] // each.units,
            *(math.prod(tensor.shape) * numbers[name] for tensor in model.tensors[name].values()),
        )
        for name, each in parts.items()
    }
    return Costs(
        device=device,
        dtype=dtype,
        base=base if device == "cpu" else 0,
        latent_factor=model.latent_factor,
        weights=weights,
        largest_units=largest,
        unet=model.configs["unet"],
        decoder_channels=tuple(int(number) for number in model.configs["vae"]["block_out_channels"]),
        model=model.name,
        compiler=compiler,
        lanes=lanes,
        upcast=model.upcast,
        measured=recall(),
        factors=model.family.memory,
    )


def upcasts(model: ModelFiles, dtype: str) -> bool:
    """Whether the autoencoder is in float32 though the rest is in a number type that it overflows in."""
    return dtype == "float16" and model.upcast


def decode_rows(width: int, height: int, device: str) -> int:
    """How many pictures of this size are decoded in one call."""
    return min(MOST_DECODED_ROWS, max(1, decoded_pixels(device) // (width * height)))


def decoded_pixels(device: str) -> int:
    """The pixels of one call of the decoder."""
    return DECODED_PIXELS.get(device.partition(":")[0], OTHER_DECODED_PIXELS)


def strip_elements(device: str) -> int:
    """Numbers in a strip of a large picture."""
    return STRIP_ELEMENTS.get(device.partition(":")[0], OTHER_STRIP_ELEMENTS)


def recall() -> dict[Peak, int]:
    """The peaks that were measured on this machine, in bytes; none where there are none or they can't be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
        found = json.loads(_file().read_text(encoding="utf-8"))["peaks"]
        return {Peak(tuple(group), *map(int, wave)): int(peak) for group, *wave, peak in found}
    return {}


def remember(key: Peak, peak: int) -> None:
    """Keeps the peak that a wave held, the highest one; that it can't is no reason to stop a run."""
    known = recall()
    if peak > known.get(key, 0):
        rows = [[*each, found] for each, found in (known | {key: peak}).items()]
        text = json.dumps({"about": ["group", *Peak._fields[1:], "peak_bytes"], "peaks": rows})
        with contextlib.suppress(OSError):
            _file().parent.mkdir(parents=True, exist_ok=True)
            atomic_write(_file(), text.encode())


def _file() -> Path:
    return cache_folder() / "peaks.json"
