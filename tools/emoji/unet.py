"""Trains the UNet together with the text encoder, on the latents of `autoencoder.make_latents`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pictures
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from networks import WORDS, build_schedule, build_text_encoder, build_unet, known_words, scaled_latents, tokenize
from progress import Clock, Training, load
from transformers import CLIPTextModel

BATCH = 48


def train_unet(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """v-prediction (Salimans & Ho 2022), each error weighted by min(SNR, 5) of the picture (Hang et al. 2023),
    but by 0.2 at least: the first steps of a picture decide what it becomes.
    """
    data = load(args.work / "latents.pt")
    all_latents, _, _ = scaled_latents(data["latents"])
    known, all_tokens = known_words(data["tokens"])
    unet, text = build_unet(), build_text_encoder(len(known) + 1)
    unet.set_attn_processor(AttnProcessor())  # PyTorch's fused attention takes 1.7 times as long for a backward pass
    text.set_attn_implementation("eager")
    if args.go_on_from:
        take_over(args.go_on_from, unet, text, known)
    both = torch.nn.ModuleList([unet, text])
    training = Training(args.work / "unet.pt", Clock(args.unet_minutes), args.unet_rate, both)
    kept = build_schedule().alphas_cumprod
    snr = kept / (1 - kept)
    weights = snr.clamp(0.2, 5) / (snr + 1)  # of a squared error in v, which is 1 + SNR times one in the picture
    empty = torch.searchsorted(known, tokenize([""])[0])
    random = torch.Generator().manual_seed(training.step)
    for _ in training.steps():
        rows = torch.randint(len(all_latents), (BATCH,), generator=random)
        tokens = all_tokens[rows]
        add_strange_words(tokens, len(known), random)
        tokens[torch.rand(BATCH, generator=random) < 0.1] = empty
        latents = all_latents[rows].float()
        noise = torch.randn(latents.shape, generator=random)
        times = spread_times(random)
        a, b = kept[times].sqrt()[:, None, None, None], (1 - kept[times]).sqrt()[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(a * latents + b * noise, times, text(tokens).last_hidden_state).sample.float()
        errors = F.mse_loss(predicted, a * noise - b * latents, reduction="none").mean((1, 2, 3))
        loss = (errors * weights[times]).mean()
        training.learn(loss, loss=loss)


def spread_times(random: torch.Generator) -> torch.Tensor:
    """One time step of each of the batch's equal parts of the schedule: a steadier loss than times by chance."""
    return ((torch.arange(BATCH) + torch.rand(BATCH, generator=random)) * 1000 / BATCH).long().clamp(max=999)


def take_over(model: Path, unet: UNet2DConditionModel, text: CLIPTextModel, known: torch.Tensor) -> None:
    """Starts from the weights of another model, wherever the shapes agree."""
    other = CLIPTextModel.from_pretrained(model / "text_encoder").float().state_dict()
    word = next(name for name in other if "token_embedding" in name)
    strange = next(row for row in range(WORDS) if row not in set(known.tolist()))
    other[word] = other[word][[*known.tolist(), strange]]
    for part, weights in (
        (unet, UNet2DConditionModel.from_pretrained(model / "unet").float().state_dict()),
        (text, other),
    ):
        own = part.state_dict()
        part.load_state_dict({**own, **{k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}})


def load_unet(work: Path, known: torch.Tensor) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """What the stage `unet` has reached, the text encoder with the words that are known and one for all others."""
    both = torch.nn.ModuleList([build_unet(), build_text_encoder(len(known) + 1)]).eval().requires_grad_(False)
    both.load_state_dict(load(work / "unet.pt")["averaged"])
    return both[0], both[1]


def add_strange_words(tokens: torch.Tensor, strange: int, random: torch.Generator) -> None:
    """Puts one to three unknown words in front of some captions, so that the model learns to overlook them."""
    for row in (torch.rand(len(tokens), generator=random) < 0.1).nonzero().flatten():
        count = int(torch.randint(1, 4, (), generator=random))
        tokens[row] = torch.cat([tokens[row, :1], torch.full((count,), strange), tokens[row, 1:-count]])
