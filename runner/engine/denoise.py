"""The stages that a wave goes through: encode the texts, draw the noise, denoise, decode.

Each call of a module has a shape that depends on the picture's size and the settings alone, never on how many
pictures there are: short calls are padded. With a fixed shape the kernels give every row the same bits whatever
stands in the other rows, so a picture doesn't depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runner.device.component import Component
from runner.engine import samplers
from runner.engine.text import combine
from runner.errors import ModelError
from runner.item import Item
from runner.model.tokens import LENGTH

PROBED_SIZE = 32  # latents along one side
LAST_TIMESTEP = 999.0
HALF = 0.5


def draw_noise(items: Sequence[Item], factor: int, channels: int) -> tuple[Tensor, list[torch.Generator]]:
    """Each item's first noise [n, C, H/8, W/8], and its generator, from which later noise is drawn."""
    generators = [torch.Generator().manual_seed(item.seed) for item in items]
    shape = (channels, items[0].height // factor, items[0].width // factor)
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    for index, item in enumerate(items):
        if item.fixed_code is not None:
            noise[index] = torch.randn(shape, generator=torch.Generator().manual_seed(item.fixed_code))
    return torch.stack(noise), generators


@dataclass(slots=True)
class Trajectory:
    """Images that take the same steps: their sampler's run, and how its calls become rows of the UNet.

    Rows are the images' own prompts first, then the negative prompts of those that are guided. `call` is None where no
    step is left to make; then the `latents` are there.
    """

    items: tuple[Item, ...]
    run: samplers.SamplerRun
    context: list[Tensor]  # for each row [77, C], or more where its prompt is in several pieces
    guided: Tensor  # [g], indexes of the guided images
    scale: Tensor  # [g, 1, 1, 1]
    call: samplers.ModelCall | None = None
    latents: Tensor | None = None  # [n, 4, h, w]

    def advance(self, predicted: Tensor | None) -> None:
        """Hands the rows' predictions to the sampler and takes its next call, or its result; None begins the run."""
        try:
            self.call = next(self.run) if predicted is None else self.run.send(self.guide(predicted))
        except StopIteration as stop:
            self.call, self.latents = None, stop.value

    def rows(self) -> tuple[Tensor, Tensor]:
        """The UNet's input [rows, 4, h, w] and its time steps [rows] for the call in hand."""
        assert self.call is not None, "a run that has finished has no rows"
        latents = torch.cat([self.call.latents, self.call.latents[self.guided]])
        return latents, torch.full((len(latents),), self.call.timestep, device=latents.device)

    def guide(self, predicted: Tensor) -> Tensor:
        """One prediction for each image [n, 4, h, w] from the rows' (Ho & Salimans 2022)."""
        wanted, unwanted = predicted[: len(self.items)], predicted[len(self.items) :]
        if not len(self.guided):
            return wanted
        guided = unwanted + self.scale * (wanted[self.guided] - unwanted)
        return wanted.index_copy(0, self.guided, guided)


def start_trajectory(
    items: Sequence[Item],
    schedule: samplers.NoiseSchedule,
    embeddings: Mapping[str, Tensor],
    pictures: Sequence[Tensor],
    unet: Component,
    factor: int,
) -> Trajectory:
    """Sets images of one size, sampler, step count and eta on their way, all of them from noise or from `pictures`.

    `pictures` are latents [4, h, w], one for each item; there are none where the images begin as noise.
    """
    first, device = items[0], unet.device
    noise, generators = draw_noise(items, factor, int(unet.config["in_channels"]))
    begin = samplers.Start(
        noise=noise.to(device),
        generators=generators,
        pictures=torch.stack(list(pictures)).to(device) if pictures else None,
        skip=first.skipped_steps,
    )
    run = samplers.start(first.sampler, schedule, steps=first.steps, eta=first.eta, begin=begin)
    guided = [index for index, item in enumerate(items) if item.guided]
    context = [combine(item, embeddings) for item in items] + [embeddings[items[index].negative] for index in guided]
    trajectory = Trajectory(
        items=tuple(items),
        run=run,
        context=[embedding.to(device, unet.dtype) for embedding in context],
        guided=torch.tensor(guided, dtype=torch.long, device=device),
        scale=torch.tensor([items[index].scale for index in guided], device=device).view(-1, 1, 1, 1),
    )
    trajectory.advance(None)
    return trajectory


def denoise(unet: Component, trajectories: Sequence[Trajectory], unet_bs: int) -> Iterator[None]:
    """Takes all trajectories (of one size) to their ends, one call further at each step of the iterator."""
    stacked: dict[tuple[int, ...], Tensor] = {}
    while active := [trajectory for trajectory in trajectories if trajectory.call]:
        for trajectory, predicted in zip(active, _predict(unet, active, unet_bs, stacked), strict=True):
            trajectory.advance(predicted)
        yield


def _predict(
    unet: Component, active: Sequence[Trajectory], unet_bs: int, stacked: dict[tuple[int, ...], Tensor]
) -> list[Tensor]:
    """Each trajectory's predictions, float32 [rows, 4, h, w], from UNet calls of exactly `unet_bs` rows.

    `stacked` has the prompts of the last step's calls, and then those of this one's: where a call has the same rows
    again, it has the same tensor, so that a layer can keep what it made of it.
    """
    rows = [trajectory.rows() for trajectory in active]
    latents = torch.cat([latents for latents, _ in rows])
    times = torch.cat([times for _, times in rows])
    contexts = [context for trajectory in active for context in trajectory.context]
    before, calls, places = dict(stacked), [], []
    stacked.clear()
    for batch in _batches(contexts, unet_bs):
        row_contexts = [contexts[row] for row in batch]
        key = tuple(map(id, row_contexts))
        stacked[key] = before[key] if key in before else torch.stack(row_contexts)
        # With the channels last convolutions need no other order inside.
        sent = latents[batch].to(unet.dtype).contiguous(memory_format=torch.channels_last)
        calls.append(_unet_call(sent, times[batch], stacked[key]))
        places += batch
    answers = torch.cat(unet.call_all(calls)).float()
    answer_to = {row: number for number, row in reversed(list(enumerate(places)))}  # the first one, not its padding
    predicted = answers[[answer_to[row] for row in range(len(latents))]]
    return list(torch.split(predicted, [len(latents) for latents, _ in rows]))


def _batches(contexts: Sequence[Tensor], size: int) -> Iterator[list[int]]:
    """The numbers of the rows whose prompts are equally long, `size` at a time; the last one of them fills up."""
    for length in sorted({len(context) for context in contexts}):
        rows = [row for row, context in enumerate(contexts) if len(context) == length]
        rows += rows[-1:] * (-len(rows) % size)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def probe_prediction(unet: Component) -> str:
    """What a UNet predicts, `epsilon` or `v_prediction`, where its files don't say.

    At the last training step the latents are all but noise. A UNet that predicts noise returns nearly its input there;
    one that predicts v (Salimans & Ho 2022) returns minus the picture that it expects, of which noise says nothing.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, int(unet.config["in_channels"]), PROBED_SIZE, PROBED_SIZE)
    noise = torch.randn(shape, generator=generator).to(unet.device, unet.dtype)
    context = torch.zeros(1, LENGTH, int(unet.config["cross_attention_dim"]), device=unet.device, dtype=unet.dtype)
    call = _unet_call(noise, torch.tensor([LAST_TIMESTEP], device=unet.device), context)
    [predicted] = unet.call_all([call], once=True)
    sent, returned = noise.float(), predicted.float()
    share = float((returned * sent).sum() / (sent * sent).sum())  # of the noise that comes back
    if not math.isfinite(share):
        raise ModelError("what the model predicts can't be found out; set model.prediction=epsilon or v_prediction")
    return "epsilon" if share > HALF else "v_prediction"


def _unet_call(latents: Tensor, times: Tensor, context: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda unet: unet(latents, times, encoder_hidden_states=context, return_dict=False)[0]
