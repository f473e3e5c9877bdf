"""Measures what a device makes of each number type: the fragments of a model, and layers of a large model's size.

Each is called a few times with made-up input. `planning.choices` decides by the results.

    for probe in probe_model(model, "cpu", free=None):
        print(probe.fragment, probe.dtype, probe.finite, probe.relative, probe.seconds)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runner.device.component import Component
from runner.engine.conditions import empty, unet_call
from runner.engine.text import text_call
from runner.model.files import ModelFiles
from runner.model.modules import build_module
from runner.model.tokens import LENGTH, tokenizers
from runner.planning import choices
from runner.planning.costs import DTYPE_BYTES, STAYS, WALKS

TYPES = ("float32", "bfloat16", "float16")  # the others are held against the first
TEXT, TIMESTEP = "a dog", 500
PROBED_LATENTS = 16  # along one side, at most
LARGE_LAYERS = "large layers"
CHANNELS, SIDE, INNER = 320, 64, 2560  # of Stable Diffusion v1's first block, for pictures of 512x512
LEAST_CALLS, MOST_CALLS, ENOUGH = 3, 6, 0.2  # calls, and seconds, of one measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A fragment that was called in a number type.

    `relative` is the norm of the difference to float32's output by the norm of that, and `seconds` what a call takes;
    None where that isn't known. `problem` says why nothing came out at all.
    """

    fragment: str
    dtype: str
    finite: bool = False
    relative: float | None = None
    seconds: float | None = None
    problem: str = ""


def probe_model(model: ModelFiles, device: str, free: int | None) -> Iterator[Probe]:
    """Calls text encoder, UNet and decoder in each number type; weights that `free` bytes don't hold walk through."""
    where = torch.device(device)

    def prepare(name: str, dtype: str) -> Callable[[], Tensor]:
        fits = free is None or model.parameters(name) * DTYPE_BYTES[dtype] <= free * choices.SPARED
        number, mode = getattr(torch, dtype), STAYS if fits else WALKS
        count = model.family.components[name].units
        component = Component(
            build_module(model, name), model.tensors[name], device=where, dtype=number, mode=mode, units=count
        )
        call = _call(model, name, component)
        return lambda: component.call_all([call])[0]

    for name in model.family.components:
        yield from _compare(name, TYPES, partial(prepare, name))


def _call(model: ModelFiles, name: str, component: Component) -> Callable[[Any], Tensor]:
    """How a component is called, each time with the same numbers."""
    where, config = (component.device, component.dtype), component.config
    if text := model.family.texts.get(name):
        tokenizer = tokenizers(model)[name]
        ids = torch.tensor([tokenizer.encode(TEXT).ids], device=component.device)
        said = text_call(text, ids)
        return lambda encoder: said(encoder)[0]
    side = min(PROBED_LATENTS, model.native_size // model.latent_factor)
    latents = _noise(1, model.latent_channels, side, side)
    if name == "vae":
        scaled = (latents / float(config["scaling_factor"])).to(*where)
        return lambda vae: vae.decode(scaled).sample
    context = _noise(1, LENGTH, int(config["cross_attention_dim"]))
    told = replace(empty(config, 1, side), context=context).to(*where)
    return unet_call(latents.to(*where), torch.tensor([TIMESTEP], device=component.device), told)


def probe_large_layers(device: str) -> Iterator[Probe]:
    """Calls a convolution and a linear layer as large as Stable Diffusion v1's in the types that may be chosen."""

    def prepare(dtype: str) -> Callable[[], Tensor]:
        where = device, getattr(torch, dtype)
        latents = _noise(1, CHANNELS, SIDE, SIDE).to(*where)
        kernel = (_noise(CHANNELS, CHANNELS, 3, 3) / math.sqrt(CHANNELS * 9)).to(*where)
        matrix = (_noise(INNER, CHANNELS) / math.sqrt(CHANNELS)).to(*where)
        return lambda: _large_layers(latents, kernel, matrix)

    yield from _compare(LARGE_LAYERS, (TYPES[0], choices.half_type(device)), prepare)


def _large_layers(latents: Tensor, kernel: Tensor, matrix: Tensor) -> Tensor:
    tokens = functional.conv2d(latents, kernel, padding=1).flatten(2).transpose(1, 2)  # [1, h * w, C]
    # On CPUs a linear layer in bfloat16 is ten times slower on numbers that don't lie side by side; a model's do.
    return functional.linear(tokens.contiguous(), matrix)


def _compare(fragment: str, dtypes: Sequence[str], prepare: Callable[[str], Callable[[], Tensor]]) -> Iterator[Probe]:
    """Measures what `prepare` makes of each number type, and holds it against the first."""
    wanted: Tensor | None = None
    for dtype in dtypes:
        probe, output = measure(fragment, dtype, prepare(dtype), wanted)
        wanted = output if dtype == TYPES[0] else wanted
        yield probe


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def measure(
    fragment: str, dtype: str, call: Callable[[], Tensor], wanted: Tensor | None
) -> tuple[Probe, Tensor | None]:
    """Calls it a few times and takes the quickest, which others disturbed least; the first call is never counted.

    Returns the output too, float32 on the CPU; None where there is none. `wanted` is what it is held against.
    """
    seconds: list[float] = []
    try:
        while len(seconds) < LEAST_CALLS or (len(seconds) < MOST_CALLS and sum(seconds[1:]) < ENOUGH):
            begun = time.perf_counter()
            output = call()
            output.flatten()[0].item()  # waits for the device
            seconds.append(time.perf_counter() - begun)
    except RuntimeError as error:  # no kernel for this number type, or no memory
        return Probe(fragment=fragment, dtype=dtype, problem=str(error).strip().partition("\n")[0]), None
    numbers = output.float().cpu()
    finite = bool(numbers.isfinite().all())
    distance = math.nan if wanted is None else float((numbers - wanted).norm() / wanted.norm())
    relative = distance if math.isfinite(distance) else None
    return Probe(fragment=fragment, dtype=dtype, finite=finite, relative=relative, seconds=min(seconds[1:])), numbers
