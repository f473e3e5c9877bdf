"""Makes the pictures of a wave: a wave in, events out. Knows one model on one device, and nothing of files.

What goes wrong with one picture is an event; what goes wrong with a whole wave is tried again picture by picture.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner import inits, stages
from runner.checkpoint import build_module
from runner.errors import RunnerError
from runner.events import ItemFailed, Rendered, StepDone, WaveEvent, WaveStarted
from runner.fragments import Component
from runner.plan import Execution, Wave
from runner.samplers import NoiseSchedule, model_calls
from runner.spec import Item
from runner.tokens import ClipTokenizer
from runner.weights import AUTO, COMPONENTS, FRAGMENTS, ModelFiles

EMBEDDINGS_KEPT, PICTURES_KEPT = 4096, 256
FULL = "float32"


class NotFinite(RunnerError):
    """The numbers of a picture overflowed."""


def available_devices() -> list[str]:
    """The devices that torch can use, best first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def free_memory(device: str) -> int | None:
    """The device's free memory in bytes; None where it isn't the device's own."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else None


def device_name(device: str) -> str:
    """What the device is called by its maker."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device == "cpu" and (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        return names[0] if names else device
    return device


class Executor:
    """A model whose fragments visit the device when a wave needs them."""

    def __init__(self, model: ModelFiles, execution: Execution) -> None:
        self.model, self.execution = model, execution
        self.tokenizer = ClipTokenizer(model.path / "tokenizer", model.pad_token)
        device, dtype = torch.device(execution.device), getattr(torch, execution.dtype)
        self.components = {
            name: Component(
                build_module(model, name),
                model.tensors[name],
                device=device,
                dtype=dtype,
                stays=execution.turbo and name == "unet",
            )
            for name in COMPONENTS
        }
        self.schedule = self._make_schedule()
        self._embeddings: OrderedDict[tuple[str, bool], Tensor] = OrderedDict()
        self._pictures: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()

    @torch.inference_mode()
    def _make_schedule(self) -> NoiseSchedule:
        schedule = NoiseSchedule.from_config(self.model.configs["scheduler"])
        if schedule.prediction == AUTO:
            schedule = replace(schedule, prediction=stages.probe_prediction(self.components["unet"]))
        return schedule

    def in_full(self) -> Executor:
        """The same model in full precision, after this one's weights have left the device; they come back when used."""
        for component in self.components.values():
            component.leave()
        return Executor(self.model, replace(self.execution, dtype=FULL))

    def describe(self) -> dict[str, Any]:
        """How pictures are made, as the record's `run` says it."""
        return {
            "device": self.execution.device,
            "device_name": device_name(self.execution.device),
            "threads": torch.get_num_threads(),
            "dtypes": dict.fromkeys(FRAGMENTS, self.execution.dtype),
            "turbo": self.execution.turbo,
            "prediction": self.schedule.prediction,
        }

    def run(self, wave: Wave) -> Iterator[WaveEvent]:
        """Makes the pictures of a wave."""
        yield WaveStarted(items=wave.items)
        made: set[int] = set()
        try:
            for event in self._render(wave):
                if isinstance(event, Rendered | ItemFailed):
                    made.add(event.item.number)
                yield event
        except RunnerError:
            raise
        except Exception as error:
            left = [item for item in wave.items if item.number not in made]
            yield from self._render_one_by_one(left, wave, error)

    def _render_one_by_one(self, items: Sequence[Item], wave: Wave, error: Exception) -> Iterator[WaveEvent]:
        if len(wave.items) == 1:
            yield from (ItemFailed(item=item, error=error) for item in items)
            return
        for item in items:
            alone = Wave(items=(item,), unet_bs=wave.unet_bs)
            yield from (event for event in self.run(alone) if not isinstance(event, WaveStarted))

    @torch.inference_mode()
    def _start(self, wave: Wave) -> list[stages.Trajectory]:
        alike: dict[tuple[object, ...], list[Item]] = {}
        for item in wave.items:
            key = (item.sampler, item.steps, item.eta, item.init is None, item.skipped_steps, item.chunked)
            alike.setdefault(key, []).append(item)
        for chunked in (False, True):
            self._encode([text for item in wave.items if item.chunked == chunked for text in item.texts()], chunked)
        return [self._start_alike(items) for items in alike.values()]

    def _start_alike(self, items: Sequence[Item]) -> stages.Trajectory:
        embeddings = self._encode([text for item in items for text in item.texts()], items[0].chunked)
        pictures = [self._encode_init(item) for item in items if item.init is not None]
        unet, factor = self.components["unet"], self.model.latent_factor
        return stages.start_trajectory(items, self.schedule, embeddings, pictures, unet, factor)

    def _encode_init(self, item: Item) -> Tensor:
        """The latents of the picture that an item begins with, encoded once as long as they are remembered."""
        key = (item.init_sha256, item.crop, item.width, item.height)
        if key not in self._pictures:
            assert item.init and item.init_sha256
            pixels = inits.load(Path(item.init), item.init_sha256, item.crop, item.width, item.height)
            self._pictures[key] = stages.encode_picture(self.components["vae"], pixels)
            if len(self._pictures) > PICTURES_KEPT:
                self._pictures.popitem(last=False)
        return self._pictures[key]

    def _render(self, wave: Wave) -> Iterator[WaveEvent]:
        reset_peak(self.execution.device)
        clock = Clock()
        with clock.stage("encode"):
            trajectories = self._start(wave)
        steps = stages.denoise(self.components["unet"], trajectories, wave.unet_bs)
        calls = max(model_calls(item.sampler, item.steps - item.skipped_steps) for item in wave.items)
        for call in range(1, calls + 1):
            with clock.stage("denoise"), torch.inference_mode():
                next(steps)
            yield StepDone(step=call, steps=calls)
        items = [item for trajectory in trajectories for item in trajectory.items]
        latents = torch.cat([trajectory.latents for trajectory in trajectories if trajectory.latents is not None])
        with clock.stage("decode"), torch.inference_mode():
            pictures, decoded = stages.decode(self.components["vae"], latents.nan_to_num())
            problems = [self._problem(*made) for made in zip(stages.is_finite(latents), decoded, pictures, strict=True)]
        share = {name: seconds / len(items) for name, seconds in clock.seconds.items()}
        peak = peak_bytes(self.execution.device)
        for item, picture, problem in zip(items, pictures, problems, strict=True):
            if problem:
                error = NotFinite(f"{problem} in {self.execution.dtype}")
                yield ItemFailed(item=item, error=error, seconds=share)
            else:
                yield Rendered(item=item, pixels=picture, seconds=share, peak_bytes=peak)

    def _problem(self, latents_finite: bool, decoded_finite: bool, picture: stages.Pixels) -> str:
        """What is wrong with a picture's numbers, or nothing. In full precision one colour is what the model draws."""
        if not latents_finite:
            return "the latents are not finite"
        if not decoded_finite:
            return "the decoded picture is not finite"
        if self.execution.dtype != FULL and stages.is_one_colour(picture):
            return "the picture is of one colour"
        return ""

    def _encode(self, texts: Sequence[str], chunked: bool) -> dict[str, Tensor]:
        """The texts' embeddings; each text is encoded once, as long as it is remembered."""
        wanted = dict.fromkeys([*texts, ""] if texts and chunked else texts)  # pieces that are missing are empty ones
        new = [text for text in wanted if (text, chunked) not in self._embeddings]
        if new:
            encoded = stages.encode_texts(self.components["text_encoder"], self.tokenizer, new, chunked=chunked)
            self._embeddings.update({(text, chunked): embedding for text, embedding in encoded.items()})
        known = {text: self._embeddings[text, chunked] for text in wanted}
        while len(self._embeddings) > EMBEDDINGS_KEPT:
            self._embeddings.popitem(last=False)
        return known


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def reset_peak(device: str) -> None:
    """Forgets the highest memory use so far."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The highest memory use since `reset_peak`, on a CPU the process's own; 0 where it isn't known."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
