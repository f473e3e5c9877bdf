"""Trains the embedded model: `python train.py --artwork SVG_FOLDER --work FOLDER STAGE...` (see README.md).

Stages, in order: `vae`, `latents`, `unet`, `decoder`, `export`; `unet` and `decoder` can run side by side.
Each can be stopped at any time and goes on from its last checkpoint in the work folder when it is called again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pictures
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENTS_PER_NAME = 256
WORDS = 49408
TOKENIZER = Path(__file__).parents[2] / "runner/models/emoji/tokenizer"


def build_vae() -> AutoencoderKL:
    channels = (32, 48, 96, 128)
    return AutoencoderKL(
        block_out_channels=channels, layers_per_block=1, latent_channels=4, norm_num_groups=16, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(64, 128, 192), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128, attention_head_dim=8,
    )  # fmt: skip


def build_text_encoder(words: int = WORDS) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=words, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=128, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1,
        pad_token_id=WORDS - 1,
    ))  # fmt: skip


def build_schedule() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


class Checkpoints:
    """What a stage has reached, in one file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict | None:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, **state: object) -> None:
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)


def learning_rate(peak: float, done: float) -> float:
    """A short warm-up, then a half cosine to nothing; `done` runs from 0 to 1."""
    return peak * min(1.0, done / 0.02 + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))


def steps(minutes: float, start: float) -> Iterator[float]:
    """The fraction of the budget that is spent, once before each step, until all of it is."""
    begun = time.monotonic() - start * 60 * minutes
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        yield done


def train_vae(args: argparse.Namespace, artwork: list, names: list[str]) -> None:
    """Trains the whole autoencoder."""
    train_autoencoder(args, artwork, Checkpoints(args.work / "vae.pt"), build_vae(), args.vae_minutes, 1.5e-3)


def train_decoder(args: argparse.Namespace, artwork: list, names: list[str]) -> None:
    """Trains the decoder on, to a sharper picture; the encoder stays, and so do the latents that the UNet learns."""
    vae = load_vae(args.work)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    train_autoencoder(args, artwork, Checkpoints(args.work / "decoder.pt"), vae, args.decoder_minutes, 1e-3)


def train_autoencoder(
    args: argparse.Namespace, artwork: list, checkpoints: Checkpoints, vae: AutoencoderKL, minutes: float, peak: float
) -> None:
    """L1, plus L1 of the differences between neighbours (edges), plus a light Kullback-Leibler term."""
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step = 0.0, 0
    if state := checkpoints.load():
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        start, step = state["spent"], state["step"]
    random = np.random.default_rng(step)
    averages = torch.zeros(3)
    for spent in steps(minutes, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, spent)
        pixels = torch.from_numpy(np.stack([_random_picture(random, artwork) for _ in range(16)]))
        wanted = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # [16, 3, 64, 64]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(wanted).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        error, edges = (made - wanted).abs().mean(), edge_error(made, wanted)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        optimizer.zero_grad()
        (error + edges + 1e-4 * kl).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        averages = averages.lerp(torch.tensor([error.item(), edges.item(), kl.item()]), 0.02)
        if step % 200 == 0:
            print(f"{step} {spent:.3f} l1 {averages[0]:.4f} edges {averages[1]:.4f} kl {averages[2]:.2f}", flush=True)
        if step % 1000 == 0:
            checkpoints.save(vae=vae.state_dict(), optimizer=optimizer.state_dict(), spent=spent, step=step)
    checkpoints.save(vae=vae.state_dict(), optimizer=optimizer.state_dict(), spent=1.0, step=step)


def edge_error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 between the differences of neighbouring pixels, [n, 3, H, W]."""
    return sum((made.diff(dim=dim) - wanted.diff(dim=dim)).abs().mean() for dim in (2, 3))


def make_latents(args: argparse.Namespace, artwork: list, names: list[str]) -> None:
    """Encodes `LATENTS_PER_NAME` pictures of each name once: the UNet then trains without the autoencoder."""
    vae = load_vae(args.work)
    random = np.random.default_rng(1)
    latents, captions = [], []
    for _ in range(LATENTS_PER_NAME):
        drawn = []
        for picture, name in zip(artwork, names, strict=True):
            caption, colour = pictures.random_caption(random, name)
            captions.append(caption)
            drawn.append(pictures.draw(picture, pictures.random_place(random), pictures.COLOURS[colour]))
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for batch in pixels.split(32):
                latents.append(vae.encode(batch).latent_dist.mean.half())
        if len(captions) % (32 * len(names)) == 0:
            print(f"latents {len(captions)}", flush=True)
    stacked = torch.cat(latents)  # [N, 4, 8, 8]
    tokens = tokenize(captions)
    Checkpoints(args.work / "latents.pt").save(latents=stacked, tokens=tokens, scale=1 / stacked.float().std().item())


def train_unet(args: argparse.Namespace, artwork: list, names: list[str]) -> None:
    """Noise prediction, errors weighted by min(SNR, 5) / SNR (Hang et al. 2023); the average of the weights is kept."""
    data = torch.load(args.work / "latents.pt", weights_only=True)
    all_latents, scale = data["latents"], data["scale"]
    known, all_tokens = known_words(data["tokens"])
    unet, text = build_unet(), build_text_encoder(len(known) + 1)
    averaged = copy.deepcopy(torch.nn.ModuleList([unet, text])).requires_grad_(False)
    trained = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    checkpoints, start, step = Checkpoints(args.work / "unet.pt"), 0.0, 0
    if state := checkpoints.load():
        for key, part in (("unet", unet), ("text", text), ("averaged", averaged), ("optimizer", optimizer)):
            part.load_state_dict(state[key])
        start, step = state["spent"], state["step"]
    schedule = build_schedule()
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weights = snr.clamp(max=5) / snr
    empty = torch.searchsorted(known, tokenize([""])[0])
    random = torch.Generator().manual_seed(step)
    average, losses = 0.0, 0.0
    for spent in steps(args.unet_minutes, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(1.2e-3, spent)
        rows = torch.randint(len(all_latents), (48,), generator=random)
        tokens = all_tokens[rows]
        add_strange_words(tokens, len(known), random)
        tokens[torch.rand(48, generator=random) < 0.1] = empty
        latents = all_latents[rows].float() * scale
        noise = torch.randn(latents.shape, generator=random)
        times = torch.randint(1000, (48,), generator=random)
        predicted = unet(schedule.add_noise(latents, noise, times), times, text(tokens).last_hidden_state).sample
        loss = (F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3)) * weights[times]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.9995, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), trained, 1 - decay)
        average, losses = average * 0.99 + loss.item() * 0.01, losses * 0.99 + 0.01
        if step % 200 == 0:
            print(f"unet {step} {spent:.3f} loss {average / losses:.4f}", flush=True)
        if step % 2000 == 0:
            save_unet(checkpoints, unet, text, averaged, optimizer, spent, step)
    save_unet(checkpoints, unet, text, averaged, optimizer, 1.0, step)


def save_unet(checkpoints: Checkpoints, unet, text, averaged, optimizer, spent: float, step: int) -> None:  # type: ignore[no-untyped-def]
    checkpoints.save(
        unet=unet.state_dict(), text=text.state_dict(), averaged=averaged.state_dict(),
        optimizer=optimizer.state_dict(), spent=spent, step=step,
    )  # fmt: skip


def known_words(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that captions have, in order, and the captions by their places in that list.

    All other tokens are trained as one, which comes after them.
    """
    known, places = tokens.unique(return_inverse=True)
    return known, places


def add_strange_words(tokens: torch.Tensor, strange: int, random: torch.Generator) -> None:
    """Puts one to three unknown words in front of some captions, so that the model learns to overlook them."""
    for row in (torch.rand(len(tokens), generator=random) < 0.1).nonzero().flatten():
        count = int(torch.randint(1, 4, (), generator=random))
        tokens[row] = torch.cat([tokens[row, :1], torch.full((count,), strange), tokens[row, 1:-count]])


def whole_vocabulary(known: torch.Tensor, trained: dict[str, torch.Tensor]) -> CLIPTextModel:
    """The text encoder with an embedding for each of CLIP's tokens."""
    text, name = build_text_encoder(), "embeddings.token_embedding.weight"
    words = trained[name][-1:].repeat(WORDS, 1)
    words[known.long()] = trained[name][:-1]
    text.load_state_dict({**trained, name: words})
    return text


def export(args: argparse.Namespace, artwork: list, names: list[str]) -> None:
    """Writes the diffusers folder, float16, without anything that changes from one export to the next."""
    data = torch.load(args.work / "latents.pt", weights_only=True)
    vae = load_vae(args.work)
    if decoder := Checkpoints(args.work / "decoder.pt").load():
        vae.load_state_dict(decoder["vae"])
    vae.register_to_config(scaling_factor=round(data["scale"], 5))
    known, _ = known_words(data["tokens"])
    averaged = torch.load(args.work / "unet.pt", weights_only=True)["averaged"]
    unet = build_unet()
    unet.load_state_dict({name[2:]: tensor for name, tensor in averaged.items() if name.startswith("0.")})
    text = whole_vocabulary(known, {name[2:]: tensor for name, tensor in averaged.items() if name.startswith("1.")})
    for name, part in (("vae", vae), ("unet", unet), ("text_encoder", text)):
        part.half().save_pretrained(args.output / name)
    for file in args.output.glob("*/config.json"):
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        file.write_text(json.dumps(config, indent=2) + "\n")
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading",
    }  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0", "feature_extractor": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (args.output / "scheduler").mkdir(exist_ok=True)
    (args.output / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    (args.output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_vae(work: Path) -> AutoencoderKL:
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["vae"])
    return vae.eval()


def tokenize(captions: list[str]) -> torch.Tensor:
    """int32 [N, 77], padded with the end token as Stable Diffusion does."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    known: dict[str, list[int]] = {}
    for caption in captions:
        if caption not in known:
            known[caption] = tokenizer(caption, padding="max_length", max_length=77, truncation=True).input_ids
    return torch.tensor([known[caption] for caption in captions], dtype=torch.int32)


def _random_picture(random: np.random.Generator, artwork: list) -> np.ndarray:
    colour = pictures.COLOURS[str(random.choice(list(pictures.COLOURS)))]
    return pictures.draw(artwork[random.integers(len(artwork))], pictures.random_place(random), colour)


STAGES = {"vae": train_vae, "latents": make_latents, "unet": train_unet, "decoder": train_decoder, "export": export}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--artwork", type=Path, required=True, help="Twemoji's folder of SVG files")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "runner/models/emoji")
    parser.add_argument("--vae-minutes", type=float, default=30)
    parser.add_argument("--unet-minutes", type=float, default=90)
    parser.add_argument("--decoder-minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    artwork, names = pictures.load_artwork(args.artwork), pictures.names()
    for stage in args.stages:
        STAGES[stage](args, artwork, names)


if __name__ == "__main__":
    main()
