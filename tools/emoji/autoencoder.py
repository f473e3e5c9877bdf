"""Trains the autoencoder, and encodes the pictures that the UNet learns from."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pictures
import torch
from diffusers import AutoencoderKL
from networks import build_vae, tokenize
from progress import Clock, Training, load, save

WHOLE_PICTURES = 0.3  # of the autoencoder's time; before it, quarters of pictures


def train_vae(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """L1, plus L1 of the differences between neighbours (edges), plus a light Kullback-Leibler term."""
    vae = AutoencoderKL.from_pretrained(args.go_on_from / "vae").float() if args.go_on_from else build_vae()
    training = Training(args.work / "vae.pt", Clock(args.vae_minutes), args.vae_rate, vae)
    random = np.random.default_rng(training.step)
    for done in training.steps():
        wanted = random_crops(random, artwork) if done < WHOLE_PICTURES else random_pictures(random, artwork, 8)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(wanted).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        error, edges = (made - wanted).abs().mean(), edge_error(made, wanted)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        training.learn(error + edges + 1e-4 * kl, l1=error, edges=edges, kl=kl)


def random_crops(random: np.random.Generator, artwork: pictures.Artwork) -> torch.Tensor:
    """Quarters of 16 pictures, [16, 3, 64, 64]: more different drawings in a step that takes as long."""
    whole = random_pictures(random, artwork, 16)
    corners = random.integers(0, pictures.SIZE // 2 + 1, size=(16, 2)) // pictures.CELL * pictures.CELL
    half = pictures.SIZE // 2
    return torch.stack(
        [x[:, top : top + half, left : left + half] for x, (top, left) in zip(whole, corners, strict=True)]
    )


def random_pictures(random: np.random.Generator, artwork: pictures.Artwork, count: int) -> torch.Tensor:
    """[count, 3, 128, 128], from -1 to 1; one in five lies off the grid."""
    drawn = []
    for number in random.integers(len(artwork.files), size=count):
        place = (pictures.free_place if random.random() < 0.2 else pictures.random_place)(random)
        drawn.append(artwork.draw(int(number), place, pictures.COLOURS[str(random.choice(list(pictures.COLOURS)))]))
    return to_tensor(drawn)


def to_tensor(drawn: list[np.ndarray]) -> torch.Tensor:
    """Pictures, uint8 [128, 128, 3] each, as [n, 3, 128, 128] from -1 to 1."""
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edge_error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 between the differences of neighbouring pixels, [n, 3, H, W]."""
    return sum((made.diff(dim=dim) - wanted.diff(dim=dim)).abs().mean() for dim in (2, 3))


def make_latents(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """Encodes each name at each place, in each of `--rounds`: the UNet then trains without the autoencoder.

    Starts anew when the autoencoder has been trained on since. The UNet then goes on from what it knows.
    """
    file, vae, upon = args.work / "latents.pt", load_vae(args.work).bfloat16(), vae_step(args.work)
    latents, tokens = torch.empty(0, 4, 16, 16, dtype=torch.half), torch.empty(0, 77, dtype=torch.int32)
    state = {"latents": latents, "tokens": tokens, "vae_step": upon}
    if file.exists() and (earlier := load(file))["vae_step"] == upon:
        state = earlier
    places = args.rounds * len(pictures.PLACES)
    clock = Clock()
    for done in range(len(state["latents"]) // len(names), places):
        random = np.random.default_rng(done)
        place = pictures.PLACES[done % len(pictures.PLACES)]
        asked = [pictures.random_caption(random, name) for name in names]
        pixels = to_tensor([artwork.draw(n, place, pictures.COLOURS[colour]) for n, (_, colour) in enumerate(asked)])
        with torch.no_grad():
            made = torch.cat([vae.encode(batch).latent_dist.mean.half() for batch in pixels.bfloat16().split(32)])
        state["latents"] = torch.cat([state["latents"], made])
        state["tokens"] = torch.cat([state["tokens"], tokenize([caption for caption, _ in asked])])
        if clock.time_to_save() or done % 20 == 19:
            print(f"latents {len(state['latents'])} of {len(names) * places}", flush=True)
            save(file, **state)
    save(file, **state)


def load_vae(work: Path) -> AutoencoderKL:
    """What the stage `vae` has reached."""
    vae = build_vae()
    vae.load_state_dict(load(work / "vae.pt")["averaged"])
    return vae.eval()


def vae_step(work: Path) -> int:
    """Which autoencoder it is: latents and decoders are of one."""
    return load(work / "vae.pt")["step"]
