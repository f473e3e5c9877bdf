"""The samplers: one denoising run as a coroutine that yields the model calls it needs and is sent the predictions.

A sampler knows nothing of guidance, prompts, batches or devices. It works on several images of the same size and
settings at once, [n, 4, h, w], each with a noise generator of its own, and does nothing that mixes them: an image is
the same bits whatever stands beside it. The arithmetic is that of diffusers' schedulers, set up so that they agree
with the original's samplers; `dpm2` and `dpm2_a` are the original's, which diffusers doesn't have, and `dpmpp_sde` is
k-diffusion's, whose noise diffusers can't take from an image's own generator.

    run = start("ddim", schedule, steps=50, eta=0.0, begin=Start(noise=noise, generators=generators))
    call = next(run)
    while True:
        call = run.send(predict(call.latents, call.timestep))  # StopIteration.value: the finished latents
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from runner.keys import AUTO, MOST_STEPS

LEADING, LINSPACE, TRAILING = "leading", "linspace", "trailing"
LEAST_ALPHA = 2.0**-24  # what diffusers takes for an alpha of zero, of which the noise would be infinite
LCM_STEPS = 50  # of the time steps that latent consistency models are distilled on


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What a sampler asks of the model: its prediction for `latents` [n, 4, h, w] at `timestep` (0 to 999)."""

    latents: Tensor
    timestep: float


# Schedulers that count noise on top of the picture; the others keep the variance of the sum at 1.
EXPLODING = (
    diffusers.EulerDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.LMSDiscreteScheduler,
)
SamplerRun = Generator[ModelCall, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """The noise that a model was trained with, and what it predicts: `epsilon`, `v_prediction`, or `auto` (unknown).

    With `zero_snr` nothing of the picture is left at the last training step (Lin et al. 2024). `spacing` says which of
    the training steps are taken, where it isn't each sampler's own choice: `leading`, `linspace`, or `trailing`, with
    which every sampler begins at the last one. `betas` replace the other three values where they are given. With
    `ends_clean` DDIM and PLMS take the end of their last step for free of noise, not for the first training step.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    betas: tuple[float, ...] | None = None
    prediction: str = "epsilon"
    zero_snr: bool = False
    spacing: str = ""
    ends_clean: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """From a diffusers `scheduler_config.json`, whose own scheduler doesn't matter."""
        return cls(
            train_steps=int(config["num_train_timesteps"]),
            beta_start=float(config.get("beta_start", 0.00085)),
            beta_end=float(config.get("beta_end", 0.012)),
            beta_schedule=str(config.get("beta_schedule", "scaled_linear")),
            betas=None if config.get("trained_betas") is None else tuple(config["trained_betas"]),
            prediction=str(config.get("prediction_type", "epsilon")),
            zero_snr=bool(config.get("rescale_betas_zero_snr")),
            spacing=TRAILING if config.get("timestep_spacing") == TRAILING else "",
            ends_clean=bool(config.get("set_alpha_to_one", False)),
        )

    def spaced(self, spacing: str) -> NoiseSchedule:
        """The same with the spacing that a picture asks for; `auto` is the model's or the sampler's own."""
        return self if spacing == AUTO else replace(self, spacing=spacing)

    def betas_settings(self) -> dict[str, Any]:
        """The noise in diffusers' words, before it is rescaled."""
        return {
            "num_train_timesteps": self.train_steps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "trained_betas": None if self.betas is None else list(self.betas),
        }

    def make(self, scheduler: str, **settings: Any) -> Any:
        """A scheduler of diffusers with this noise."""
        kind = getattr(diffusers, scheduler)
        taken = inspect.signature(kind.__init__).parameters
        chosen = settings | self.betas_settings() | {"prediction_type": self.prediction}
        if self.zero_snr and "rescale_betas_zero_snr" in taken:
            chosen["rescale_betas_zero_snr"] = True
        elif self.zero_snr:
            chosen["trained_betas"] = _with_zero_snr(self).tolist()
        if self.spacing and "timestep_spacing" in settings:
            chosen["timestep_spacing"] = self.spacing
            if self.spacing == LEADING and "steps_offset" in taken:
                chosen["steps_offset"] = 1  # as all of these models were trained with
        if self.ends_clean and "set_alpha_to_one" in settings:
            chosen["set_alpha_to_one"] = True
        return kind(**chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run begins: `noise` [n, 4, h, w], float32, and the generators that further noise comes from.

    With `pictures` [n, 4, h, w], finished latents, the run leaves out its first `skip` steps and begins with the
    pictures, as noisy as they would be then; without any step left it is them.
    """

    noise: Tensor
    generators: list[torch.Generator]
    pictures: Tensor | None = None
    skip: int = 0

    def latents(self, sigma: float) -> Tensor:
        """The latents at the noise level `sigma` (standard deviation over the signal's) to begin with."""
        if self.pictures is None or not self.skip:
            return self.noise * sigma
        return self.pictures + self.noise * sigma


def start(name: str, schedule: NoiseSchedule, *, steps: int, eta: float, begin: Start) -> SamplerRun:
    """The run of the sampler `name`."""
    if begin.pictures is not None and begin.skip >= steps:
        return _nothing_to_do(begin.pictures)
    return TABLE[name](schedule, steps, eta, begin)


def _nothing_to_do(pictures: Tensor) -> SamplerRun:
    yield from ()
    return pictures


def _by_scheduler(
    scheduler: str, *, noisy: bool = False, takes_eta: bool = False, **settings: Any
) -> Callable[..., SamplerRun]:
    def run(schedule: NoiseSchedule, steps: int, eta: float, begin: Start) -> SamplerRun:
        chosen = dict(settings)
        if steps == 1 and chosen.get("timestep_spacing") == LINSPACE:
            chosen["timestep_spacing"] = TRAILING  # of a single step linspace takes the end without noise
        made = schedule.make(scheduler, **chosen)
        extra: dict[str, Any] = {"generator": begin.generators} if noisy else {}
        if takes_eta:
            extra["eta"] = eta
        made.set_timesteps(steps)
        if settings.get("use_karras_sigmas"):
            # Between the training steps, where the sigmas are; diffusers rounds, which is far off for little noise.
            made.timesteps = torch.tensor([_time_of(sigma, schedule) for sigma in made.sigmas[:-1].tolist()])
        _leave_out(made, begin.skip)
        latents = _first_latents(made, begin)
        for timestep in made.timesteps:
            prediction = yield ModelCall(made.scale_model_input(latents, timestep), float(timestep))
            latents = made.step(prediction, timestep, latents, **extra).prev_sample
        return latents

    return run


def _leave_out(scheduler: Any, skip: int) -> None:
    """Lets a scheduler's run begin after its first `skip` steps, as if it began there: with no steps remembered."""
    if not skip:
        return
    if isinstance(scheduler, diffusers.PNDMScheduler):
        # Its second prediction is at the second time step, and made twice; that has to stay so in what is left.
        times = scheduler.timesteps.unique().flip(0)[skip:]
        scheduler.timesteps = torch.cat([times[:2], times[1:]])
        return
    entries = skip * scheduler.order  # a second-order scheduler lists each step twice
    scheduler.timesteps = scheduler.timesteps[entries:]
    if isinstance(scheduler, diffusers.LCMScheduler | diffusers.TCDScheduler):
        scheduler.num_inference_steps = len(scheduler.timesteps)  # it adds noise after all of them but the last
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas[entries:]


def _first_latents(scheduler: Any, begin: Start) -> Tensor:
    """What a scheduler begins with: noise, or the pictures with as much noise as its first step expects."""
    latents: Tensor = begin.noise * scheduler.init_noise_sigma
    if begin.pictures is None or not begin.skip:
        return latents
    if hasattr(scheduler, "sigmas"):
        sigma = float(scheduler.sigmas[0])
    else:
        alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
        sigma = ((1 - alpha) / alpha) ** 0.5
    latents = begin.latents(sigma)
    explodes = isinstance(scheduler, EXPLODING)
    return latents if explodes else latents * (sigma**2 + 1) ** -0.5


def lcm(schedule: NoiseSchedule, steps: int, eta: float, begin: Start) -> SamplerRun:
    """Latent consistency sampling (Luo et al. 2023), for models distilled for it: each step denoises fully."""
    return _by_consistency("LCMScheduler", steps)(schedule, steps, eta, begin)


def tcd(schedule: NoiseSchedule, steps: int, eta: float, begin: Start) -> SamplerRun:
    """Trajectory consistency sampling (Zheng et al. 2024), for models distilled for it; `eta` is its gamma."""
    return _by_consistency("TCDScheduler", steps, takes_eta=True)(schedule, steps, eta, begin)


def _by_consistency(scheduler: str, steps: int, *, takes_eta: bool = False) -> Callable[..., SamplerRun]:
    finest = LCM_STEPS if steps <= LCM_STEPS else MOST_STEPS
    return _by_scheduler(scheduler, noisy=True, takes_eta=takes_eta, original_inference_steps=finest)


def dpm2(schedule: NoiseSchedule, steps: int, eta: float, begin: Start, *, ancestral: bool = False) -> SamplerRun:
    """DPM-Solver-2-like steps (Karras et al. 2022, algorithm 2 without churn), the midpoint taken on the cube root.

    After k-diffusion's `sample_dpm_2` and `sample_dpm_2_ancestral` as the original used them: the middle of two sigmas
    is the cube of the mean of their cube roots (rho = 3), and the last step makes its second evaluation as well.
    """
    sigmas = _even_sigmas(schedule, steps)[begin.skip :]
    latents = begin.latents(sigmas[0])  # [n, 4, h, w]
    for here, there in itertools.pairwise(sigmas):
        down, up = _ancestral_step(here, there) if ancestral else (there, 0.0)
        middle = ((here ** (1 / 3) + down ** (1 / 3)) / 2) ** 3
        slope = yield from _slope(schedule, latents, here)
        slope = yield from _slope(schedule, latents + slope * (middle - here), middle)
        latents = latents + slope * (down - here)
        if up:
            latents = latents + _draw_noise(latents, begin.generators) * up
    return latents


def dpm2_ancestral(*arguments: Any) -> SamplerRun:
    """`dpm2` with fresh noise after each step."""
    return dpm2(*arguments, ancestral=True)


def dpmpp_sde(schedule: NoiseSchedule, steps: int, eta: float, begin: Start, *, karras: bool = False) -> SamplerRun:
    """DPM-Solver++ of second order for the diffusion SDE (Lu et al. 2022), the middle taken on the logarithm.

    After k-diffusion's `sample_dpmpp_sde` with eta 1 and r 1/2. Its noise is the growth of one Brownian path over
    sigma, from `here` to the middle and to `there`; each step's path is drawn from the image's own generator.
    """
    sigmas = (_karras_sigmas if karras else _even_sigmas)(schedule, steps)[begin.skip :]
    latents = begin.latents(sigmas[0])  # [n, 4, h, w]
    for here, there in itertools.pairwise(sigmas):
        slope = yield from _slope(schedule, latents, here)
        if not there:
            return latents - slope * here
        middle = (here * there) ** 0.5
        first, second = (_draw_noise(latents, begin.generators) for _ in range(2))
        path = (first * (here - middle) ** 0.5 + second * (middle - there) ** 0.5) * (here - there) ** -0.5
        down, up = _ancestral_step(here, middle)
        between = latents + slope * (down - here) + first * up
        slope = yield from _slope(schedule, between, middle)
        picture = between - slope * middle
        down, up = _ancestral_step(here, there)
        latents = picture + (latents - picture) * (down / here) + path * up
    return latents


def dpmpp_sde_karras(*arguments: Any) -> SamplerRun:
    """`dpmpp_sde` with Karras' sigmas."""
    return dpmpp_sde(*arguments, karras=True)


def _slope(schedule: NoiseSchedule, latents: Tensor, sigma: float) -> Generator[ModelCall, Tensor, Tensor]:
    """d latents / d sigma, which is the predicted noise."""
    scale = (sigma**2 + 1) ** -0.5
    prediction: Tensor = yield ModelCall(latents * scale, _time_of(sigma, schedule))
    if schedule.prediction == "v_prediction":
        prediction = prediction * scale + latents * (sigma * scale**2)
    return prediction


@functools.cache
def _with_zero_snr(schedule: NoiseSchedule) -> np.ndarray[Any, Any]:
    """The betas with zero terminal SNR, for schedulers that don't rescale them; the last alpha is all but zero."""
    made = diffusers.DDPMScheduler(**schedule.betas_settings(), rescale_betas_zero_snr=True)
    alphas = made.alphas_cumprod.double().numpy().clip(LEAST_ALPHA)
    return 1 - np.concatenate([alphas[:1], alphas[1:] / alphas[:-1]])


@functools.cache
def _training_sigmas(schedule: NoiseSchedule) -> np.ndarray[Any, Any]:
    """The noise's standard deviation over the signal's, one for each training step, rising."""
    rescaled = {"trained_betas": _with_zero_snr(schedule).tolist()} if schedule.zero_snr else {}
    made = diffusers.DDPMScheduler(**schedule.betas_settings() | rescaled)
    alphas = made.alphas_cumprod.double().numpy()
    return np.asarray(((1 - alphas) / alphas) ** 0.5)


def _time_of(sigma: float, schedule: NoiseSchedule) -> float:
    """The time step whose noise is `sigma`, between two training steps on a line."""
    training = _training_sigmas(schedule)
    return float(np.interp(sigma, training, np.arange(len(training))))


def leading_to(pictures: Tensor, call: ModelCall, schedule: NoiseSchedule) -> Tensor:
    """The prediction that leads from a call's latents to finished latents, `pictures` [n, 4, h, w].

    The latents of every call are the picture times the signal's share, and noise times its own; the squares of the
    shares add up to 1.
    """
    training = _training_sigmas(schedule)
    sigma = float(np.interp(call.timestep, np.arange(len(training)), training))
    signal = (sigma**2 + 1) ** -0.5
    noise: Tensor = (call.latents - signal * pictures) / (sigma * signal)
    return noise if schedule.prediction == "epsilon" else signal * noise - sigma * signal * pictures


def led_to(predicted: Tensor, call: ModelCall, schedule: NoiseSchedule) -> Tensor:
    """The finished latents [n, 4, h, w] that a prediction leads to from a call's: the inverse of `leading_to`."""
    training = _training_sigmas(schedule)
    sigma = float(np.interp(call.timestep, np.arange(len(training)), training))
    signal = (sigma**2 + 1) ** -0.5
    of_noise: Tensor = call.latents / signal - sigma * predicted
    return of_noise if schedule.prediction == "epsilon" else signal * call.latents - sigma * signal * predicted


def _even_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """The sigmas of evenly spaced time steps, from the last one down, and 0."""
    training = _training_sigmas(schedule)
    times: np.ndarray[Any, Any] = np.linspace(schedule.train_steps - 1, 0, steps)
    if schedule.spacing == TRAILING:
        times = np.linspace(schedule.train_steps, 0, steps, endpoint=False).round() - 1
    elif schedule.spacing == LEADING:
        times = np.arange(steps)[::-1] * (schedule.train_steps // steps) + 1.0
    return [*np.interp(times, np.arange(len(training)), training).tolist(), 0.0]


def _karras_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """The largest sigma down to the smallest, evenly spaced on the seventh root (Karras et al. 2022), and 0."""
    smallest, largest = _training_sigmas(schedule)[[0, -1]] ** (1 / 7)
    return [*(np.linspace(largest, smallest, steps) ** 7).tolist(), 0.0]


def _ancestral_step(here: float, there: float) -> tuple[float, float]:
    """How far down to go, and how much noise to add, to arrive at `there` (k-diffusion's `get_ancestral_step`)."""
    up = min(there, (there**2 * (here**2 - there**2) / here**2) ** 0.5)
    return (there**2 - up**2) ** 0.5, up


def _draw_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise for each image from its own generator, on the CPU, so that no device or neighbour changes it."""
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like.device)


TABLE: Mapping[str, Callable[..., SamplerRun]] = {
    "ddim": _by_scheduler(
        "DDIMScheduler", takes_eta=True, noisy=True, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False,
        clip_sample=False,
    ),
    "plms": _by_scheduler(
        "PNDMScheduler", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True
    ),
    "heun": _by_scheduler("HeunDiscreteScheduler", timestep_spacing=LINSPACE),
    "euler": _by_scheduler("EulerDiscreteScheduler", timestep_spacing=LINSPACE),
    "euler_a": _by_scheduler("EulerAncestralDiscreteScheduler", noisy=True, timestep_spacing=LINSPACE),
    "lms": _by_scheduler("LMSDiscreteScheduler", timestep_spacing=LINSPACE),
    "dpm2": dpm2,
    "dpm2_a": dpm2_ancestral,
    "dpmpp_2m": _by_scheduler("DPMSolverMultistepScheduler", timestep_spacing=LINSPACE),
    "dpmpp_2m_karras": _by_scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True),
    "dpmpp_2m_sde": _by_scheduler(
        "DPMSolverMultistepScheduler", noisy=True, algorithm_type="sde-dpmsolver++", timestep_spacing=LINSPACE
    ),
    "dpmpp_2m_sde_karras": _by_scheduler(
        "DPMSolverMultistepScheduler", noisy=True, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    ),
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_sde_karras": dpmpp_sde_karras,
    "unipc": _by_scheduler("UniPCMultistepScheduler", timestep_spacing=LINSPACE),
    "lcm": lcm,
    "tcd": tcd,
}  # fmt: skip
