"""From noise to finished latents: noise is drawn, samplers run, and their calls become rows of the UNet.

Each call of a module has a shape that depends on the picture's size and the settings alone, never on how many
pictures there are: short calls are padded. With a fixed shape the kernels give every row the same bits whatever
stands in the other rows, so a picture doesn't depend on its neighbours.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from runner.device.component import Component
from runner.engine import samplers
from runner.engine.conditions import (
    Conditions,
    embed_guidance,
    empty,
    latent_channels,
    stack,
    told_sizes,
    unet_call,
)
from runner.engine.pictures import Given
from runner.engine.text import Encoded, combine, over_time
from runner.errors import ModelError
from runner.item import Item
from runner.sampler_names import step_of

PROBED_SIZE = 32  # latents along one side
LAST_TIMESTEP = 999.0
HALF = 0.5
Timeline = Sequence[tuple[int, Conditions]]  # of a row, each with its last step


def draw_noise(items: Sequence[Item], factor: int, channels: int) -> tuple[Tensor, list[torch.Generator]]:
    """Each item's first noise [n, C, H/8, W/8], and its generator, from which later noise is drawn."""
    generators = [torch.Generator().manual_seed(item.seed) for item in items]
    shape = (channels, items[0].height // factor, items[0].width // factor)
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    for index, item in enumerate(items):
        if item.fixed_code is not None:
            noise[index] = torch.randn(shape, generator=torch.Generator().manual_seed(item.fixed_code))
    return torch.stack(noise), generators


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What images keep of their init pictures' latents [n, 4, h, w]: those `where` [n, 1, h, w] is true."""

    pictures: Tensor
    where: Tensor
    schedule: samplers.NoiseSchedule

    def keep(self, predicted: Tensor, call: samplers.ModelCall) -> Tensor:
        """The predictions [n, 4, h, w], replaced by those that lead to the pictures where these are kept."""
        return torch.where(self.where, samplers.leading_to(self.pictures, call, self.schedule), predicted)


@dataclass(slots=True)
class Trajectory:
    """Images that take the same steps: their sampler's run, and how its calls become rows of the UNet.

    Rows are the images' own prompts first, then the negative prompts of those that are guided. What each is told may
    change from step to step, by its timeline; `conditions` is another list then, and the same one otherwise. `call` is
    None where no step is left to make; then the `latents` are there.
    """

    items: tuple[Item, ...]
    run: samplers.SamplerRun
    timelines: Sequence[Timeline]  # of each row
    guided: Tensor  # [g], indexes of the guided images
    scale: Tensor  # [g, 1, 1, 1]
    rescale: Tensor | None = None  # [g, 1, 1, 1], None where no image has any
    kept: Kept | None = None  # None where no image has a mask
    schedule: samplers.NoiseSchedule | None = None
    call: samplers.ModelCall | None = None
    answer: tuple[Tensor, samplers.ModelCall] | None = None  # the last prediction [n, 4, h, w], and what it answered
    latents: Tensor | None = None  # [n, 4, h, w]
    conditions: list[Conditions] = field(default_factory=list)  # of each row, in the call in hand
    calls: int = 0  # that were made before

    def advance(self, predicted: Tensor | None) -> None:
        """Hands the rows' predictions to the sampler and takes its next call, or its result; None begins the run."""
        try:
            if predicted is None or self.call is None:
                self.call = next(self.run)
            else:
                self.answer = self.guide(predicted), self.call
                self.call = self.run.send(self.answer[0])
        except StopIteration as stop:
            self.call, self.latents = None, stop.value
        self.calls += predicted is not None
        self._tell(step_of(self.items[0].sampler, self.calls))

    def expected(self) -> Tensor | None:
        """The finished latents [n, 4, h, w] as they are expected by now; None before anything is predicted."""
        if self.latents is not None or self.answer is None or self.schedule is None:
            return self.latents
        return samplers.led_to(*self.answer, self.schedule)

    def _tell(self, step: int) -> None:
        """Lets the conditions be those of a step, counted from 0 among those that are made."""
        told = [next(told for end, told in row if step <= end or row[-1][0] == end) for row in self.timelines]
        if any(one is not other for one, other in itertools.zip_longest(told, self.conditions)):
            self.conditions = told

    def rows(self) -> tuple[Tensor, Tensor]:
        """The UNet's input [rows, 4, h, w] and its time steps [rows] for the call in hand."""
        assert self.call is not None, "a run that has finished has no rows"
        latents = torch.cat([self.call.latents, self.call.latents[self.guided]])
        return latents, torch.full((len(latents),), self.call.timestep, device=latents.device)

    def guide(self, predicted: Tensor) -> Tensor:
        """One prediction for each image [n, 4, h, w] from the rows' (Ho & Salimans 2022)."""
        wanted, unwanted = predicted[: len(self.items)], predicted[len(self.items) :]
        if len(self.guided):
            guided = unwanted + self.scale * (wanted[self.guided] - unwanted)
            if self.rescale is not None:
                guided = rescale_guidance(guided, wanted[self.guided], self.rescale)
            wanted = wanted.index_copy(0, self.guided, guided)
        return self.kept.keep(wanted, self.call) if self.kept and self.call else wanted


def rescale_guidance(guided: Tensor, wanted: Tensor, share: Tensor) -> Tensor:
    """Guided predictions [g, 4, h, w] with some of the spread that they would have without guidance.

    Guidance makes pictures too bright or too dark where noise has no trace of them left (Lin et al. 2024, section 3.4).
    """
    spread = wanted.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return share * (guided * spread) + (1 - share) * guided


def start_trajectory(
    items: Sequence[Item],
    schedule: samplers.NoiseSchedule,
    embeddings: Mapping[str, Encoded],
    given: Sequence[Given],
    unet: Component,
    factor: int,
    *,
    zeros: bool = False,
) -> Trajectory:
    """Sets images of one size, sampler, step count and eta on their way, all of them from noise or from pictures.

    `given` has one entry for each item, or none where nothing is given but prompts. `zeros` says whether no negative
    prompt is zeros, and not the empty text.
    """
    first, device, given = items[0], unet.device, given or [Given()] * len(items)
    noise, generators = draw_noise(items, factor, latent_channels(unet.config))
    pictures = _stacked([each.latents for each in given], device)
    begin = samplers.Start(noise=noise.to(device), generators=generators, pictures=pictures, skip=first.skipped_steps)
    run = samplers.start(first.sampler, schedule, steps=first.steps, eta=first.eta, begin=begin)
    # A model that is told the scale guides itself, in one row (Luo et al. 2023).
    width = unet.config.get("time_cond_proj_dim")
    guided = [] if width else [index for index, item in enumerate(items) if item.guided]
    rows = [(n, _positive(item, embeddings)) for n, item in enumerate(items)]
    rows += [(n, _negative(items[n], embeddings, zeros=zeros)) for n in guided]
    trajectory = Trajectory(
        items=tuple(items),
        run=run,
        timelines=[_timeline(items[n], told, unet, given[n].channels) for n, told in rows],
        guided=torch.tensor(guided, dtype=torch.long, device=device),
        scale=_of_images([items[index].scale for index in guided], device),
        rescale=_of_images([items[n].value("rescale") for n in guided], device) if first.value("rescale") else None,
        kept=_kept(given, pictures, schedule),
        schedule=schedule,
    )
    trajectory.advance(None)
    return trajectory


def _stacked(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(there).to(device) if there else None


def _kept(given: Sequence[Given], pictures: Tensor | None, schedule: samplers.NoiseSchedule) -> Kept | None:
    masks = [each.kept for each in given]
    some = next((mask for mask in masks if mask is not None), None)
    if some is None or pictures is None:
        return None
    where = [torch.zeros_like(some) if mask is None else mask for mask in masks]
    return Kept(pictures=pictures, where=torch.stack(where).to(pictures.device), schedule=schedule)


def _of_images(numbers: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).view(-1, 1, 1, 1)


def _positive(item: Item, embeddings: Mapping[str, Encoded]) -> list[tuple[int, Encoded]]:
    if item.a1111:
        return over_time(item, item.parts[0].text, embeddings)
    return [(item.steps, combine(item, embeddings))]


def _negative(item: Item, embeddings: Mapping[str, Encoded], *, zeros: bool) -> list[tuple[int, Encoded]]:
    told = over_time(item, item.negative, embeddings)
    return [(end, made.zeros()) for end, made in told] if zeros and not item.negative else told


def _timeline(item: Item, told: Sequence[tuple[int, Encoded]], unet: Component, channels: Tensor | None) -> Timeline:
    """What a row is told when, on the device; the same text is the same object."""
    made = {id(text): _conditions(item, text, unet.config, channels).to(unet.device, unet.dtype) for _, text in told}
    return [(end, made[id(text)]) for end, text in told]


def _conditions(item: Item, text: Encoded, config: Mapping[str, Any], channels: Tensor | None) -> Conditions:
    """What a row of an item is told, by a UNet's configuration."""
    width = config.get("time_cond_proj_dim")
    return Conditions(
        context=text.context,
        guidance=embed_guidance(item.scale, width) if width else None,
        pooled=text.pooled,
        sizes=told_sizes(item) if config.get("addition_embed_type") else None,
        channels=channels,
    )


def denoise(unet: Component, trajectories: Sequence[Trajectory], unet_bs: int) -> Iterator[None]:
    """Takes all trajectories (of one size) to their ends, one call further at each step of the iterator."""
    calls: _Calls | None = None
    while active := [trajectory for trajectory in trajectories if trajectory.call]:
        if calls is None or not calls.are_of(active):
            calls = _Calls(active, unet, unet_bs)
        for trajectory, predicted in zip(active, calls.predict(), strict=True):
            trajectory.advance(predicted)
        yield


class _Calls:
    """The UNet calls of a step, of exactly `unet_bs` rows each, as long as the same trajectories are told the same.

    What is the same in each step is made once, on the device: a list as an index would make the host wait.
    """

    def __init__(self, active: Sequence[Trajectory], unet: Component, unet_bs: int) -> None:
        self.active, self._unet = active, unet
        self._conditions = [trajectory.conditions for trajectory in active]
        told = list(itertools.chain.from_iterable(self._conditions))
        batches = list(_batches(told, unet_bs))
        places = [row for batch in batches for row in batch]
        answer_to = {row: number for number, row in reversed(list(enumerate(places)))}  # the first one, not its padding
        self._rows = [torch.tensor(batch, device=unet.device) for batch in batches]
        self._told = [stack([told[row] for row in batch]) for batch in batches]
        self._answers = torch.tensor([answer_to[row] for row in range(len(told))], device=unet.device)
        self._counts = [len(trajectory.conditions) for trajectory in active]

    def are_of(self, active: Sequence[Trajectory]) -> bool:
        """Whether these trajectories are those that the calls were made for, told what they were told then."""
        now = [trajectory.conditions for trajectory in active]
        return len(now) == len(self._conditions) and all(map(operator.is_, now, self._conditions))

    def predict(self) -> list[Tensor]:
        """Each trajectory's predictions, float32 [rows, 4, h, w]."""
        rows = [trajectory.rows() for trajectory in self.active]
        latents = torch.cat([latents for latents, _ in rows])
        times = torch.cat([times for _, times in rows])
        calls = []
        for batch, told in zip(self._rows, self._told, strict=True):
            # With the channels last convolutions need no other order inside.
            sent = latents[batch].to(self._unet.dtype).contiguous(memory_format=torch.channels_last)
            calls.append(unet_call(sent, times[batch], told))
        answers = torch.cat(self._unet.call_all(calls)).float()
        return list(torch.split(answers[self._answers], self._counts))


def _batches(told: Sequence[Conditions], size: int) -> Iterator[list[int]]:
    """The numbers of the rows whose conditions have one shape, `size` at a time; the last one of them fills up."""
    for shape in sorted({conditions.shape for conditions in told}):
        rows = [row for row, conditions in enumerate(told) if conditions.shape == shape]
        rows += rows[-1:] * (-len(rows) % size)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def probe_prediction(unet: Component) -> str:
    """What a UNet predicts, `epsilon` or `v_prediction`, where its files don't say.

    At the last training step the latents are all but noise. A UNet that predicts noise returns nearly its input there;
    one that predicts v (Salimans & Ho 2022) returns minus the picture that it expects, of which noise says nothing.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, latent_channels(unet.config), PROBED_SIZE, PROBED_SIZE)
    noise = torch.randn(shape, generator=generator).to(unet.device, unet.dtype)
    nothing = empty(unet.config, 1, PROBED_SIZE).to(unet.device, unet.dtype)
    call = unet_call(noise, torch.tensor([LAST_TIMESTEP], device=unet.device), nothing)
    [predicted] = unet.call_all([call], once=True)
    sent, returned = noise.float(), predicted.float()
    share = float((returned * sent).sum() / (sent * sent).sum())  # of the noise that comes back
    if not math.isfinite(share):
        raise ModelError("what the model predicts can't be found out; set model.prediction=epsilon or v_prediction")
    return "epsilon" if share > HALF else "v_prediction"
