"""What Optimized Stable Diffusion computes, in float32: the reference that the runner's pictures are held against.

Written from the formulas and apart from the runner, of which nothing is imported: CompVis' DDIM and PLMS over their
evenly spaced time steps (Song et al. 2021, Liu et al. 2022), k-diffusion's samplers (Karras et al. 2022) over sigmas
found between the training steps. `half` rounds the sigmas of all k-samplers but `lms` to half precision, as the
original does on every device; `faithful` begins img2img one step of noise too high, and cuts bytes off, as it does.
The original knows models of noise. A model of v (Salimans & Ho 2022) is taken for the noise that its v implies; where
`plms` mixes predictions, v are mixed, as diffusers does.

    picture = Original(folder).draw("tiger face", [27], sampler="euler", steps=50, scale=7.5)  # uint8 [1, H, W, 3]
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from scipy import integrate
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = torch.tensor(np.cumprod(1 - BETAS), dtype=torch.float32)
SIGMAS = ((1 - ALPHAS) / ALPHAS) ** 0.5
LMS_ORDER = 4


@dataclass(frozen=True)
class Model:
    """Latents [n, 4, h, w] and their time steps [n] to what the UNet predicts, guided."""

    predict: Callable[[Tensor, Tensor], Tensor]
    of_v: bool

    def noise(self, latents: Tensor, times: Tensor, kept: Tensor) -> Tensor:
        """The noise in latents; the picture in them makes up `kept` of their variance."""
        return self.as_noise(self.predict(latents, times), latents, kept)

    def as_noise(self, predicted: Tensor, latents: Tensor, kept: Tensor) -> Tensor:
        return kept.sqrt() * predicted + (1 - kept).sqrt() * latents if self.of_v else predicted


class Original:
    """A diffusers folder's model, resident, one picture after the other."""

    def __init__(self, folder: Path, vocabulary: Path) -> None:
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(str(vocabulary))
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        self.of_v = scheduler["prediction_type"] == "v_prediction"

    @torch.inference_mode()
    def draw(
        self,
        prompt: str,
        seeds: Sequence[int],
        *,
        sampler: str,
        steps: int,
        scale: float,
        size: int = 64,
        eta: float = 0.0,
        half: bool = False,
        init: Image.Image | None = None,
        strength: float = 0.75,
        faithful: bool = True,
    ) -> np.ndarray:
        """Pictures uint8 [n, size, size, 3]; later noise continues the generator of the last seed."""
        model = self.guided(prompt, len(seeds), scale)
        noise = draw_noise(seeds, (4, size // 8, size // 8))
        if init is not None:
            kept = int(strength * steps)
            latents = noised(self.encode(init, size), noise, steps, kept if faithful else kept - 1)
            latents = ddim(model, latents, steps, eta, kept)
        elif sampler in BY_TIME:
            latents = BY_TIME[sampler](model, noise, steps, eta)
        else:
            sigmas = sigmas_of(steps)
            denoiser = Denoiser(model, torch.float16 if half and sampler != "lms" else torch.float32)
            latents = BY_SIGMA[sampler](denoiser, noise * sigmas[0], sigmas)
        return self.decode(latents, cut=faithful)

    def embed(self, text: str) -> Tensor:
        """[1, 77, C]"""
        tokens = self.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.text(tokens.input_ids).last_hidden_state

    def weigh(self, prompt: str) -> Tensor:
        """The parts' embeddings, added up by weight; a single text as it is."""
        parts = split_prompt(prompt)
        if len(parts) == 1:
            return self.embed(parts[0][0])
        total = sum(weight for _, weight in parts)
        combined = torch.zeros_like(self.embed(""))
        for text, weight in parts:
            combined = torch.add(combined, self.embed(text), alpha=weight / total)
        return combined

    def guided(self, prompt: str, count: int, scale: float) -> Model:
        context = torch.cat([self.embed("").expand(count, -1, -1), self.weigh(prompt).expand(count, -1, -1)])

        def predict(latents: Tensor, times: Tensor) -> Tensor:
            both = self.unet(torch.cat([latents] * 2), torch.cat([times] * 2), encoder_hidden_states=context).sample
            unwanted, wanted = both.chunk(2)
            return unwanted + scale * (wanted - unwanted)

        return Model(predict, self.of_v)

    def encode(self, picture: Image.Image, size: int) -> Tensor:
        """The most likely latents; the original takes a sample of them."""
        resized = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        levels = torch.from_numpy(np.asarray(resized).astype(np.float32) / 255).permute(2, 0, 1)[None]
        return self.vae.encode(2 * levels - 1).latent_dist.mode() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor, *, cut: bool) -> np.ndarray:
        decoded = [self.vae.decode(one[None] / self.vae.config.scaling_factor).sample for one in latents]
        levels = 255 * ((torch.cat(decoded) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return (levels if cut else levels.round()).astype(np.uint8)


def split_prompt(prompt: str) -> list[tuple[str, float]]:
    """Parts that end in `:number`, and words after the last one, which weigh 1."""
    part = re.compile(r"([^:]+):(\S+) ?")
    rest = part.sub("", prompt)
    return [(text, float(weight)) for text, weight in part.findall(prompt)] + ([(rest, 1.0)] if rest else [])


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The global generator is seeded for each picture, and left as the last one's noise leaves it."""
    noise = []
    for seed in seeds:
        torch.manual_seed(seed)
        noise.append(torch.randn((1, *shape)))
    return torch.cat(noise)


# By time steps: DDIM, PLMS, and img2img.


def time_steps(steps: int) -> list[int]:
    """Rising; more of them than asked for where `steps` doesn't divide 1000."""
    return [time + 1 for time in range(0, 1000, 1000 // steps)]


def alphas_of(times: Sequence[int]) -> tuple[Tensor, Tensor]:
    """At each time step, and at the one below it."""
    here = ALPHAS[list(times)]
    return here, torch.cat([ALPHAS[:1], here[:-1]])


def step_down(latents: Tensor, noise: Tensor, here: Tensor, there: Tensor, eta: float = 0.0) -> Tensor:
    """DDIM's step: the picture that the noise leaves, with the noise of the next level."""
    sigma = eta * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
    picture = (latents - (1 - here).sqrt() * noise) / here.sqrt()
    moved = there.sqrt() * picture + (1 - there - sigma**2).sqrt() * noise
    return moved + sigma * torch.randn(latents.shape)


def ddim(model: Model, latents: Tensor, steps: int, eta: float = 0.0, kept: int | None = None) -> Tensor:
    """All steps, or the `kept` lowest."""
    times = time_steps(steps)
    levels = list(zip(times, *alphas_of(times), strict=True))[:kept]
    for time, here, there in reversed(levels):
        latents = step_down(latents, model.noise(latents, same(time, latents), here), here, there, eta)
    return latents


def plms(model: Model, latents: Tensor, steps: int, eta: float = 0.0) -> Tensor:
    """Adams-Bashforth over the last four predictions, begun with an improved Euler step."""
    times = time_steps(steps)
    levels = list(zip(times, *alphas_of(times), strict=True))[::-1]
    past: list[Tensor] = []
    for number, (time, here, there) in enumerate(levels):
        predicted = model.predict(latents, same(time, latents))
        if not past:
            below = levels[min(number + 1, len(levels) - 1)][0]
            moved = step_down(latents, model.as_noise(predicted, latents, here), here, there)
            mixed = (predicted + model.predict(moved, same(below, latents))) / 2
        elif len(past) == 1:
            mixed = (3 * predicted - past[-1]) / 2
        elif len(past) == 2:
            mixed = (23 * predicted - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            mixed = (55 * predicted - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        past = [*past[-2:], predicted]
        latents = step_down(latents, model.as_noise(mixed, latents, here), here, there)
    return latents


def noised(latents: Tensor, noise: Tensor, steps: int, level: int) -> Tensor:
    """A picture as noisy as at the time step number `level`, from below."""
    alpha = alphas_of(time_steps(steps))[0][level]
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def same(time: float, latents: Tensor) -> Tensor:
    return torch.full((len(latents),), time)


# By sigmas: k-diffusion's samplers.


def sigmas_of(steps: int) -> Tensor:
    """Evenly spaced in time from the last training step down, between two training steps on a line; and 0."""
    times = torch.linspace(len(SIGMAS) - 1, 0, steps)
    low, high, share = times.floor().long(), times.ceil().long(), times.frac()
    return torch.cat([(1 - share) * SIGMAS[low] + share * SIGMAS[high], torch.zeros(1)])


def time_of(sigma: Tensor) -> Tensor:
    """The time step of each sigma [n], on a line between the two training steps whose sigmas are nearest."""
    nearest = (sigma - SIGMAS[:, None]).abs().topk(2, dim=0, largest=False).indices.sort(dim=0).values
    low, high = SIGMAS[nearest[0]], SIGMAS[nearest[1]]
    share = ((low - sigma) / (low - high)).clamp(0, 1)
    return (1 - share) * nearest[0] + share * nearest[1]


@dataclass(frozen=True)
class Denoiser:
    """The model as k-diffusion sees it: from latents and the sigma of their noise to the picture without it.

    Sigmas are of the number type `dtype` on their way into it.
    """

    model: Model
    dtype: torch.dtype

    def slope(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """d latents / d sigma."""
        rounded = sigma * torch.ones(len(latents), dtype=self.dtype)  # stays of this type: `sigma` is a scalar
        column = rounded[:, None, None, None]
        noise = self.model.noise(latents * (1 / (column**2 + 1) ** 0.5), time_of(rounded), 1 / (column**2 + 1))
        picture = latents - noise * column
        return (latents - picture) / sigma


def euler(denoiser: Denoiser, latents: Tensor, sigmas: Tensor) -> Tensor:
    for here, there in itertools.pairwise(sigmas):
        here = here.to(denoiser.dtype)
        latents = latents + denoiser.slope(latents, here) * (there - here)
    return latents


def heun(denoiser: Denoiser, latents: Tensor, sigmas: Tensor) -> Tensor:
    for here, there in itertools.pairwise(sigmas):
        here = here.to(denoiser.dtype)
        slope = denoiser.slope(latents, here)
        if there > 0:
            slope = (slope + denoiser.slope(latents + slope * (there - here), there)) / 2
        latents = latents + slope * (there - here)
    return latents


def dpm2(denoiser: Denoiser, latents: Tensor, sigmas: Tensor) -> Tensor:
    for here, there in itertools.pairwise(sigmas):
        latents = midpoint(denoiser, latents, here, there)
    return latents


def midpoint(denoiser: Denoiser, latents: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """A step by the slope in the middle, which is taken on the cube root."""
    middle = ((here ** (1 / 3) + there ** (1 / 3)) / 2) ** 3
    halfway = latents + denoiser.slope(latents, here) * (middle - here)
    return latents + denoiser.slope(halfway, middle) * (there - here)


def ancestral(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    up = (there**2 * (here**2 - there**2) / here**2) ** 0.5
    return (there**2 - up**2) ** 0.5, up


def euler_a(denoiser: Denoiser, latents: Tensor, sigmas: Tensor) -> Tensor:
    for here, there in itertools.pairwise(sigmas):
        down, up = ancestral(here, there)
        latents = latents + denoiser.slope(latents, here) * (down - here)
        latents = latents + torch.randn_like(latents) * up
    return latents


def dpm2_a(denoiser: Denoiser, latents: Tensor, sigmas: Tensor) -> Tensor:
    for here, there in itertools.pairwise(sigmas):
        down, up = ancestral(here, there)
        latents = midpoint(denoiser, latents, here, down) + torch.randn_like(latents) * up
    return latents


def lms(denoiser: Denoiser, latents: Tensor, sigmas: Tensor) -> Tensor:
    """Each past slope weighs as much as its Lagrange polynomial's integral over the step."""
    past: list[Tensor] = []
    grid = sigmas.double().numpy()
    for number in range(len(sigmas) - 1):
        past = [denoiser.slope(latents, sigmas[number]), *past][:LMS_ORDER]
        nodes = [grid[number - place] for place in range(len(past))]
        for place, slope in enumerate(past):
            others = [node for other, node in enumerate(nodes) if other != place]
            basis = lambda tau, own=nodes[place], others=others: np.prod([(tau - o) / (own - o) for o in others])  # noqa: E731
            latents = latents + slope * integrate.quad(basis, grid[number], grid[number + 1], epsrel=1e-4)[0]
    return latents


BY_TIME = {"ddim": ddim, "plms": plms}
BY_SIGMA = {"euler": euler, "euler_a": euler_a, "heun": heun, "dpm2": dpm2, "dpm2_a": dpm2_a, "lms": lms}
SAMPLERS = (*BY_TIME, *BY_SIGMA)
