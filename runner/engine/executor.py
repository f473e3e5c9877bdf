"""Makes the pictures of a wave: a wave in, events out. Knows one model on one device, and nothing of files.

What goes wrong with one picture is an event; what goes wrong with a whole wave is tried again picture by picture.
"""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from runner.device.component import Component
from runner.device.lanes import Here, Lanes
from runner.device.memory import (
    compute_exactly,
    count_failed_allocations,
    device_name,
    is_lost,
    is_out_of_memory,
    limit_memory,
    peak_bytes,
    release_memory,
    reset_peak,
    versions,
)
from runner.engine import autoencoder, denoise, openvino
from runner.engine.emphasis import texts_of
from runner.engine.loras import Loras
from runner.engine.pictures import Pictures
from runner.engine.preview import Previews
from runner.engine.remembered import Remembered
from runner.engine.samplers import NoiseSchedule
from runner.engine.text import Encoded, Texts, Way, ways_of
from runner.errors import DeviceLost, RunnerError, SettingError
from runner.events import Failure, ItemFailed, MemoryShort, Rendered, StepDone, WaveDone, WaveEvent, WaveStarted
from runner.item import Item
from runner.kernels.replace import replace_layers
from runner.kernels.upsampling import merge_upsampling
from runner.machine.heap import Heap, process_heap
from runner.model.files import AUTO, ModelFiles
from runner.model.modules import build_module
from runner.model.tokens import tokenizers
from runner.planning import choices, costs, waves
from runner.planning.costs import VISITS, WALKS
from runner.planning.layouts import Execution, Layout
from runner.planning.waves import Wave
from runner.record import FULL, INDUCTOR, NONE, OPENVINO, Making, environment
from runner.sampler_names import model_calls
from runner.text import show_size

EMBEDDINGS_KEPT = 48 << 20  # bytes in the host's memory


class NotFinite(RunnerError):
    """The numbers of a picture overflowed."""


class NoWorkspace(torch.OutOfMemoryError):
    """A library had too little memory for the kernel that it wanted, and took another one."""


class Executor:
    """A model whose fragments visit the device when a wave needs them."""

    def __init__(self, model: ModelFiles, execution: Execution) -> None:
        self.model, self.execution = model, execution
        device, dtype = torch.device(execution.device), getattr(torch, execution.dtype)
        compute_exactly(execution.device)
        limit_memory(execution.device, None if execution.advice else execution.limit)
        self._heap = process_heap() if execution.device == "cpu" else Heap()
        if execution.device == "cpu":
            self._heap.take_over(execution.limit)
        self._lanes = Lanes(min(execution.lanes, torch.get_num_threads())) if execution.lanes else None
        place, dtypes = self._lanes or Here(), dict.fromkeys(model.family.components, dtype)
        if costs.upcasts(model, execution.dtype):
            dtypes["vae"] = torch.float32
        if execution.compiler == OPENVINO:
            dtypes["unet"] = torch.float32  # which it is converted from, and called with
        self.components = {
            name: Component(
                build_module(model, name),
                model.tensors[name],
                device=device,
                dtype=dtype,
                mode=VISITS,
                place=place,
                units=model.family.components[name].units,
                # What inductor makes for a card would lay them out like that in each call.
                channels_last=execution.compiler == INDUCTOR and device.type == "cuda",
            )
            for name, dtype in dtypes.items()
        }
        self._texts = Texts(model.family.texts, self.components, tokenizers(model))
        self._loras = Loras(model, self.components)
        self._prepare(dtype)
        self.schedule = self._make_schedule()
        openvino.compile_unet(self.components["unet"], model, execution)
        self._accepts_shortages = False  # where no plan takes less memory
        self._lowered: dict[tuple[int, int], Layout] = {}  # by size, where memory ran out
        self._embeddings: Remembered[tuple[object, ...]] = Remembered(EMBEDDINGS_KEPT)
        self._previews = Previews(self.components["vae"])
        self._pictures = Pictures(self.components["vae"], inpaints=model.inpaints, factor=model.latent_factor)

    def _prepare(self, dtype: torch.dtype) -> None:
        """Puts layers into the place of torch's, where they are faster."""
        unet, on_cpu = self.components["unet"].module, self.execution.device == "cpu"
        if on_cpu or self.execution.compiler == INDUCTOR:
            merge_upsampling(unet)
        if on_cpu:
            merge_upsampling(self.components["vae"].module)
        if on_cpu and self.execution.compiler == NONE:
            replace_layers(unet, dtype)
            self._heap.watch(unet)

    @torch.inference_mode()
    def _make_schedule(self) -> NoiseSchedule:
        schedule = NoiseSchedule.from_config(self.model.configs["scheduler"])
        if schedule.prediction == AUTO:
            if self.execution.compiler == NONE:
                self.components["unet"].change(WALKS)
            schedule = replace(schedule, prediction=denoise.probe_prediction(self.components["unet"]))
        return schedule

    def in_full(self) -> Executor:
        """The same model in full precision, after this one's weights have left the device; they come back when used."""
        for component in self.components.values():
            component.drop()
        return Executor(self.model, choices.in_full_precision(self.execution))

    def describe(self) -> Making:
        """How all pictures are made, without what depends on their size."""
        execution = self.execution
        return Making(
            device=execution.device,
            device_name=device_name(execution.device),
            threads=1 if self._lanes else torch.get_num_threads(),
            dtypes=self._dtypes(),
            prediction=self.schedule.prediction,
            compile=execution.compiler,
            env=(*environment(execution.compiler), *versions(execution.device)),
        )

    def _dtypes(self) -> tuple[tuple[str, str], ...]:
        found = dict.fromkeys(self.model.family.fragments, self.execution.dtype)
        upcast = {"vae": FULL} if costs.upcasts(self.model, self.execution.dtype) else {}
        return tuple((found | upcast).items())

    def _making(self, layout: Layout) -> Making:
        return self.describe()._replace(unet_bs=layout.unet_bs, turbo=layout.turbo)

    def run(self, wave: Wave) -> Iterator[WaveEvent]:
        """Makes the pictures of a wave, as its layout says or, where memory turned out to be short, with less."""
        yield WaveStarted(items=wave.items)
        left = list(wave.items)
        while left:
            part = next(waves.split(left, self._layout(wave)))
            made: set[int] = set()
            for event in self._attempt(part):
                if isinstance(event, Rendered | ItemFailed):
                    made.add(event.item.number)
                yield event
            left = [item for item in left if item.number not in made]
        yield WaveDone()

    def _attempt(self, wave: Wave) -> Iterator[WaveEvent]:
        """Makes the pictures of a wave; those without an event at its end must be tried again with less memory."""
        made: set[int] = set()
        try:
            for event in self._render(wave):
                if isinstance(event, Rendered | ItemFailed):
                    made.add(event.item.number)
                yield event
            yield from self._learn(wave)
        except RunnerError:
            raise
        except Exception as error:
            left = [item for item in wave.items if item.number not in made]
            yield from self._answer(error, replace(wave, items=tuple(left)))

    def _answer(self, error: Exception, wave: Wave) -> Iterator[WaveEvent]:
        """What comes of an error: a smaller plan if memory is short, else each picture by itself, else a failure.

        Raises:
            DeviceLost: the device has failed, and no further picture would be any better.
        """
        if is_lost(error):
            what = f"{self.execution.device}: the device failed ({str(error).splitlines()[0]})"
            raise DeviceLost(f"{what}. What was finished is safe; run again") from error
        traceback.clear_frames(error.__traceback__)  # or what they made would take memory from the next attempt
        for component in self.components.values():
            component.drop()
        if is_out_of_memory(error) and (lower := self._lower(wave)):
            release_memory(self.execution.device)
            yield MemoryShort(message=f"out of memory with {wave.layout}; going on with {lower}")
        elif isinstance(error, NoWorkspace):
            self._accepts_shortages = True
            yield MemoryShort(message=f"{error}; pictures may be rounded otherwise than with more memory")
            yield from self._attempt(wave)
        elif len(wave.items) > 1:
            for item in wave.items:
                yield from self._attempt(replace(wave, items=(item,)))
        else:
            making = self._making(wave.layout)
            yield from (ItemFailed(item=item, error=Failure.of(error), making=making) for item in wave.items)

    def _layout(self, wave: Wave) -> Layout:
        """The wave's own layout, or one that needs less, if it is known by now that memory is short."""
        size = wave.items[0].width, wave.items[0].height
        try:
            return self._lowered.get(size) or self.execution.layout(*size)
        except SettingError:  # what was measured in this run refuses the next run, not this one
            return wave.layout

    def _lower(self, wave: Wave) -> Layout | None:
        """The next layout after this one that should need no more; None if there is none."""
        size = wave.items[0].width, wave.items[0].height
        if wave.layout.kept:
            self._lowered[size] = wave.layout.keeping(wave.layout.kept // 2)
            return self._lowered[size]
        # By the formula alone: what was measured is not known of the ways that weren't tried.
        guessed = replace(self.execution, limit=None, costs=replace(self.execution.costs, measured={}))
        layouts = itertools.dropwhile(lambda layout: layout.way != wave.layout.way, guessed.layouts(*size))
        tried = next(layouts)
        lower = next((layout for layout in layouts if layout.peak <= tried.peak), None)
        if lower:
            self._lowered[size] = lower
        return lower

    def _learn(self, wave: Wave) -> Iterator[MemoryShort]:
        """Keeps what the wave held for later plans, and says so if it was more than it should have been."""
        peak, execution, first = peak_bytes(self.execution.device), self.execution, wave.items[0]
        rows = sum(item.rows for item in wave.items)
        key = execution.costs.key(wave.layout.modes, first.width, first.height, wave.unet_bs, rows)
        if not peak:
            return
        needed = self._heap.live_bytes() or peak if execution.device == "cpu" else peak
        if execution.limit and peak > execution.limit:
            needed = max(needed, peak)  # so much was held though all that was free was given back
        needed -= self.components["unet"].kept
        costs.remember(key, needed)
        known = {**execution.costs.measured, key: max(needed, execution.costs.measured.get(key, 0))}
        self.execution = replace(execution, costs=replace(execution.costs, measured=known))
        if execution.limit and not execution.advice and peak > execution.limit:
            text = f"the wave held {show_size(peak)}, more than memory={show_size(execution.limit)}"
            yield MemoryShort(message=f"{text}; the next ones are planned with that")

    def _burst(self, wave: Wave) -> int:
        first = wave.items[0]
        return self.execution.costs.burst(first.width, first.height, wave.unet_bs, wave.layout.wave_rows)

    @torch.inference_mode()
    def _start(self, wave: Wave) -> list[denoise.Trajectory]:
        alike: dict[tuple[Way, tuple[object, ...]], list[Item]] = {}
        ways: dict[Way, list[str]] = {}
        for item, way in zip(wave.items, ways_of(wave.items), strict=True):
            key = (item.sampler, item.steps, item.eta, item.init is None, item.skipped_steps)
            more = (item.value("spacing"), bool(item.value("rescale")))
            alike.setdefault((way, (*key, *more)), []).append(item)
            ways.setdefault(way, []).extend(texts_of(item))
        for way, texts in ways.items():
            self._encode(texts, way)
        return [self._start_alike(items, way) for (way, _), items in alike.items()]

    def _start_alike(self, items: Sequence[Item], way: Way) -> denoise.Trajectory:
        embeddings = self._encode([text for item in items for text in texts_of(item)], way)
        given = self._pictures.given(items)
        unet, factor = self.components["unet"], self.model.latent_factor
        zeros, schedule = self.model.zeros, self.schedule.spaced(items[0].value("spacing"))
        return denoise.start_trajectory(items, schedule, embeddings, given, unet, factor, zeros=zeros)

    def _render(self, wave: Wave) -> Iterator[WaveEvent]:
        for name, mode in wave.layout.modes.items():
            self.components[name].change(mode, wave.layout.kept if name == "unet" else 0)
        if self._lanes:
            wanted = self.execution.costs.side_by_side(wave.unet_bs, wave.layout.wave_rows)
            self._lanes.width = min(self._lanes.count, wanted)
        reset_peak(self.execution.device)
        shortages = count_failed_allocations(self.execution.device)
        if self.execution.device == "cpu":
            self._heap.begin(self.execution.limit, self._burst(wave))
        clock = Clock()
        with clock.stage("encode"):
            self._loras.put_on(wave.items[0].loras)
            trajectories = self._start(wave)
            self._texts.rest()
        steps = denoise.denoise(self.components["unet"], trajectories, wave.unet_bs)
        calls = max(model_calls(item.sampler, item.steps - item.skipped_steps) for item in wave.items)
        for call in range(1, calls + 1):
            with clock.stage("denoise"), torch.inference_mode():
                next(steps)
            yield StepDone(step=call, steps=calls, preview=partial(self._previews.of, trajectories))
        self.components["unet"].rest()
        self._check_shortages(shortages)
        items = [item for trajectory in trajectories for item in trajectory.items]
        share = {name: seconds / len(items) for name, seconds in clock.seconds.items()}
        for event in self._decode(items, trajectories, wave.layout, share):
            self._check_shortages(shortages)
            yield event

    def _check_shortages(self, before: int) -> None:
        """A wave in which memory was short may have been made with other kernels, and is made again with less of it.

        Raises:
            NoWorkspace: memory was short since then.
        """
        if not self._accepts_shortages and count_failed_allocations(self.execution.device) > before:
            raise NoWorkspace("the device had no memory for a kernel's workspace")

    def _decode(
        self,
        items: Sequence[Item],
        trajectories: Sequence[denoise.Trajectory],
        layout: Layout,
        share: Mapping[str, float],
    ) -> Iterator[WaveEvent]:
        latents = torch.cat([trajectory.latents for trajectory in trajectories if trajectory.latents is not None])
        decoded = autoencoder.decode(self.components["vae"], latents.nan_to_num())
        left = zip(items, autoencoder.is_finite(latents), strict=True)
        making = self._making(layout)
        while True:
            begun = time.perf_counter()
            with torch.inference_mode():
                made = next(decoded, None)
            if made is None:
                return
            seconds = {**share, "decode": (time.perf_counter() - begun) / len(made[0])}
            peak = peak_bytes(self.execution.device)
            for picture, decoded_finite in zip(*made, strict=True):
                item, latents_finite = next(left)
                if problem := self._problem(latents_finite, decoded_finite, picture):
                    error = NotFinite(f"{problem} in {self.execution.dtype}")
                    yield ItemFailed(item=item, error=Failure.of(error), seconds=seconds, making=making)
                else:
                    pixels = self._pictures.finish(item, picture)
                    yield Rendered(item=item, pixels=pixels, seconds=seconds, peak_bytes=peak, making=making)

    def _problem(self, latents_finite: bool, decoded_finite: bool, picture: autoencoder.Pixels) -> str:
        """What is wrong with a picture's numbers, or nothing. In full precision one colour is what the model draws."""
        if not latents_finite:
            return "the latents are not finite"
        if not decoded_finite:
            return "the decoded picture is not finite"
        if self.execution.dtype != FULL and autoencoder.is_one_colour(picture):
            return "the picture is of one colour"
        return ""

    def _encode(self, texts: Sequence[str], way: Way) -> dict[str, Encoded]:
        """The texts' embeddings; each text is encoded once, as long as it is remembered."""
        wanted = dict.fromkeys([*texts, ""] if texts and way.chunked else texts)  # what fills pieces up
        keys = {text: (text, way.with_words_of([text]), self._loras.texts) for text in wanted}
        known = {text: self._embeddings[key] for text, key in keys.items() if key in self._embeddings}
        if new := [text for text in wanted if text not in known]:
            encoded = self._texts.encode(new, way=way.with_words_of(new))
            known |= {text: self._embeddings.keep(keys[text], made) for text, made in encoded.items()}
        return {text: Encoded._make(tensors) for text, tensors in known.items()}


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
