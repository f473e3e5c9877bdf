"""Trains the decoder on the latents that the UNet makes, so that what is drawn is as sharp as what was drawn from.

The encoder stays as it is, and with it the latents that the UNet learns. Pictures are encoded, their latents are noised
and denoised by the UNet in a few steps, and the decoder learns the picture from the result. Beside the distance to the
picture there is a small adversarial part, of a discriminator of patches, weighted as in Esser et al. 2021 (VQGAN).
"""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path

import numpy as np
import pictures
import torch
import torch.nn.functional as F
from autoencoder import edge_error, load_vae, to_tensor, vae_step
from diffusers import AutoencoderKL
from networks import build_schedule, known_words, scaled_latents, tokenize
from progress import Clock, Training, load
from torch import nn
from unet import load_unet

BATCH = 8
MOST_NOISE = 400  # the time step up to which a picture is noised: its shapes survive that
UNTOUCHED = 0.15  # of the latents stay as they were encoded
MOST_STEPS = 3
MOST_GUIDANCE = 4.0
ADVERSARIAL = 0.4  # of the gradient at the last layer
CRITIC_FROM, ADVERSARIAL_FROM = 0.1, 0.35  # of the stage's time: the discriminator has a long start
CRITIC_RATE = 3e-4
CRITIC_STEPS = 3  # for each of the decoder's, on pictures of late: most patches are plain and teach nothing
REMEMBERED = 24


def train_decoder(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """L1 and L1 of the edges, and what the discriminator says of the picture."""
    vae = load_vae(args.work)
    latents_of, discriminator = DrawnLatents(args, vae), Discriminator()
    critic = torch.optim.AdamW(discriminator.parameters(), lr=CRITIC_RATE, betas=(0.5, 0.9), weight_decay=1e-4)
    training = Training(
        args.work / "decoder.pt", Clock(args.decoder_minutes), args.decoder_rate, decoder_of(vae),
        upon=vae_step(args.work), discriminator=discriminator, critic=critic,
    )  # fmt: skip
    remembered: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=REMEMBERED)
    fooled, told = torch.zeros(()), torch.full((), 2.0)
    random = np.random.default_rng(training.step)
    for done in training.steps():
        numbers = random.integers(len(names), size=BATCH)
        asked = [pictures.random_caption(random, names[number]) for number in numbers]
        wanted = to_tensor([
            artwork.draw(int(number), pictures.random_place(random), pictures.COLOURS[colour])
            for number, (_, colour) in zip(numbers, asked, strict=True)
        ])  # fmt: skip
        latents = latents_of(wanted, [caption for caption, _ in asked], random)
        with torch.autocast("cpu", torch.bfloat16):
            made = vae.decode(latents).sample.float()
        error, edges = (made - wanted).abs().mean(), edge_error(made, wanted)
        loss = error + edges
        if done > ADVERSARIAL_FROM:
            fooled = -discriminator(made).mean()
            loss = loss + ADVERSARIAL * balance(loss, fooled, vae.decoder.conv_out.weight) * fooled
        training.learn(loss, l1=error, edges=edges, fooled=fooled, told=told)
        remembered.append((wanted, made.detach()))
        if done > CRITIC_FROM and len(remembered) >= CRITIC_STEPS:
            for place in random.integers(len(remembered), size=CRITIC_STEPS):
                told = learn_to_tell(discriminator, critic, *remembered[place])


def decoder_of(vae: AutoencoderKL) -> nn.Module:
    """What the stage trains of an autoencoder."""
    return nn.ModuleList([vae.post_quant_conv, vae.decoder])


def load_decoder(work: Path, vae: AutoencoderKL) -> None:
    """Gives an autoencoder the decoder that the stage has reached."""
    state = load(work / "decoder.pt")
    if state["upon"] != vae_step(work):
        raise SystemExit("the autoencoder was trained on since the decoder was: run the stage 'decoder' again")
    decoder_of(vae).load_state_dict(state["averaged"])


def balance(one: torch.Tensor, other: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """How much larger the first loss's gradient is at this layer, 100 at most."""
    (of_one,), (of_other,) = (torch.autograd.grad(loss, layer, retain_graph=True) for loss in (one, other))
    return (of_one.norm() / (of_other.norm() + 1e-6)).clamp(max=100)


def learn_to_tell(
    discriminator: Discriminator, critic: torch.optim.Optimizer, drawn: torch.Tensor, made: torch.Tensor
) -> torch.Tensor:
    """One step of the discriminator, with the hinge loss; 2 is no difference seen."""
    of_drawn, of_made = discriminator(torch.cat([drawn, made])).chunk(2)
    told = F.relu(1 - of_drawn).mean() + F.relu(1 + of_made).mean()
    critic.zero_grad()  # what the decoder's step left, too
    told.backward()
    critic.step()
    return told.detach()


class Discriminator(nn.Module):
    """Tells drawn patches from decoded ones: [n, 3, 128, 128] to [n, 1, 32, 32], a number for each 26x26 pixels.

    Normalization lets a little of the whole picture into each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1), nn.GroupNorm(8, 64), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 96, 3, 1, 1), nn.GroupNorm(8, 96), nn.LeakyReLU(0.2),
            nn.Conv2d(96, 96, 3, 1, 1), nn.GroupNorm(8, 96), nn.LeakyReLU(0.2),
            nn.Conv2d(96, 1, 1),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(pixels).float()


class DrawnLatents:
    """Latents of pictures as the UNet would have drawn them."""

    def __init__(self, args: argparse.Namespace, vae: nn.Module) -> None:
        data = load(args.work / "latents.pt")
        _, mean, deviation = scaled_latents(data["latents"])
        self.vae, self.mean, self.deviation = vae, mean[:, None, None], deviation[:, None, None]
        self.known, _ = known_words(data["tokens"])
        self.unet, self.text = load_unet(args.work, self.known)
        self.kept = build_schedule().alphas_cumprod

    @torch.no_grad()
    def __call__(self, drawn: torch.Tensor, captions: list[str], random: np.random.Generator) -> torch.Tensor:
        """[n, 4, 16, 16] of pictures [n, 3, 128, 128], each noised to its own time step."""
        times = torch.from_numpy(random.integers(1, MOST_NOISE, size=len(drawn)))
        guidance = torch.from_numpy(random.uniform(1, MOST_GUIDANCE, size=(len(drawn), 1, 1, 1))).float()
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(drawn).latent_dist.mean.float()
            words = self.text(torch.searchsorted(self.known, tokenize([""] * len(captions) + captions)))[0]
        scaled = (latents - self.mean) / self.deviation
        again = self._denoise(scaled, times, int(random.integers(1, MOST_STEPS + 1)), words, guidance)
        untouched = torch.from_numpy(random.random((len(drawn), 1, 1, 1)) < UNTOUCHED)
        return torch.where(untouched, latents, again * self.deviation + self.mean)

    def _denoise(
        self, latents: torch.Tensor, times: torch.Tensor, steps: int, words: torch.Tensor, guidance: torch.Tensor
    ) -> torch.Tensor:
        """Noises the latents and denoises them in so many steps (DDIM, Song et al. 2020)."""
        noisy, picture = self._mixed(latents, torch.randn_like(latents), times), latents
        for left in range(steps, 0, -1):
            now = times * left // steps
            with torch.autocast("cpu", torch.bfloat16):
                without, with_words = self.unet(noisy.repeat(2, 1, 1, 1), now.repeat(2), words).sample.float().chunk(2)
            v = without + guidance * (with_words - without)
            picture, noise = self._mixed(noisy, -v, now), self._mixed(v, noisy, now)
            noisy = self._mixed(picture, noise, times * (left - 1) // steps)
        return picture

    def _mixed(self, picture: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        kept = self.kept[times][:, None, None, None]
        return kept.sqrt() * picture + (1 - kept).sqrt() * noise
