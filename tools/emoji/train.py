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
from muon import Muon
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BATCH = 48
WORDS = 49408
TOKENIZER = Path(__file__).parents[2] / "runner/models/emoji/tokenizer"
SAVE_SECONDS = 200
WHOLE_PICTURES = 0.3  # of the autoencoder's time; before it, quarters of pictures


def build_vae() -> AutoencoderKL:
    channels = (32, 48, 96, 128)
    return AutoencoderKL(
        block_out_channels=channels, layers_per_block=1, latent_channels=4, norm_num_groups=16, sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128, 192), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4,
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
    return peak * min(1.0, done / 0.01 + 1e-2) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


class Clock:
    """Minutes of this process's own computing: they neither pass while it is stopped nor while others compute."""

    def __init__(self, minutes: float, spent: float) -> None:
        self.minutes, self.before, self.begun = minutes, spent, time.process_time()
        self.saved = self.begun

    @property
    def spent(self) -> float:
        return self.before + (time.process_time() - self.begun) / 60

    def steps(self) -> Iterator[float]:
        """The fraction of the budget that is spent, once before each step, until all of it is."""
        while self.spent < self.minutes:
            yield self.spent / self.minutes

    def time_to_save(self) -> bool:
        if due := time.process_time() - self.saved > SAVE_SECONDS:
            self.saved = time.process_time()
        return due


def train_vae(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """Trains the whole autoencoder."""
    vae = AutoencoderKL.from_pretrained(args.go_on_from / "vae").float() if args.go_on_from else build_vae()
    train_autoencoder(args, artwork, Checkpoints(args.work / "vae.pt"), vae, args.vae_minutes, args.vae_rate)


def train_decoder(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """Trains the decoder on, to a sharper picture; the encoder stays, and so do the latents that the UNet learns.

    It sees latents with a little noise, since the UNet's are never quite those of a picture.
    """
    vae = load_vae(args.work)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    train_autoencoder(args, artwork, Checkpoints(args.work / "decoder.pt"), vae, args.decoder_minutes, 1e-3, 0.3)


def train_autoencoder(
    args: argparse.Namespace, artwork: pictures.Artwork, checkpoints: Checkpoints, vae: AutoencoderKL,
    minutes: float, peak: float, noise: float = 0.0,
) -> None:  # fmt: skip
    """L1, plus L1 of the differences between neighbours (edges), plus a light Kullback-Leibler term."""
    trained = [(name, p) for name, p in vae.named_parameters() if p.requires_grad]
    optimizer = Muon(trained, lr=peak, weight_decay=1e-2)
    averaged = copy.deepcopy(vae).requires_grad_(False)
    clock, step = Clock(minutes, 0.0), 0
    if state := checkpoints.load():
        vae.load_state_dict(state["trained"])
        averaged.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        clock, step = Clock(minutes, state["spent"]), state["step"]

    def save() -> None:
        checkpoints.save(
            trained=vae.state_dict(), vae=averaged.state_dict(), optimizer=optimizer.state_dict(),
            spent=clock.spent, step=step,
        )  # fmt: skip

    random, first = np.random.default_rng(step), step
    averages = torch.zeros(3)
    for done in clock.steps():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, done)
        wanted = (
            random_crops(random, artwork)
            if done < WHOLE_PICTURES and not noise
            else random_pictures(random, artwork, 8)
        )
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(wanted).latent_dist
            made = vae.decode(add_noise(posterior.sample(), noise)).sample.float()
        error, edges = (made - wanted).abs().mean(), edge_error(made, wanted)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        optimizer.zero_grad()
        (error + edges + 1e-4 * kl).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(vae.parameters()), max(2e-3, 1 / (step + 1)))
        losses = torch.tensor([error.item(), edges.item(), kl.item()])
        averages = averages.lerp(losses, max(0.02, 1 / (step - first + 1)))
        if step % 100 == 0:
            print(
                f"{step} {clock.spent:.1f}min l1 {averages[0]:.4f} edges {averages[1]:.4f} kl {averages[2]:.2f}",
                flush=True,
            )
        if clock.time_to_save():
            save()
    save()


def add_noise(latents: torch.Tensor, most: float) -> torch.Tensor:
    """Noise of up to this share of each channel's deviation, another share in each picture."""
    share = most * torch.rand(len(latents), 1, 1, 1)
    return latents + share * latents.detach().std((0, 2, 3), keepdim=True) * torch.randn_like(latents)


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
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edge_error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 between the differences of neighbouring pixels, [n, 3, H, W]."""
    return sum((made.diff(dim=dim) - wanted.diff(dim=dim)).abs().mean() for dim in (2, 3))


def make_latents(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """Encodes each name at each place, in each of `--rounds`: the UNet then trains without the autoencoder.

    Starts anew when the autoencoder has been trained on since. The UNet then goes on from what it knows.
    """
    vae, vae_step = load_vae(args.work).to(torch.bfloat16), Checkpoints(args.work / "vae.pt").load()["step"]
    checkpoints = Checkpoints(args.work / "latents.pt")
    state = checkpoints.load()
    if state is None or state["vae_step"] != vae_step:
        latents, tokens = torch.empty(0, 4, 16, 16, dtype=torch.half), torch.empty(0, 77, dtype=torch.int32)
        state = {"latents": latents, "tokens": tokens, "vae_step": vae_step}
    per_round = len(names) * len(pictures.PLACES)
    clock = Clock(math.inf, 0.0)
    done = len(state["latents"]) // len(names)  # places, in all rounds
    while done < args.rounds * len(pictures.PLACES):
        random = np.random.default_rng(done)
        place = pictures.PLACES[done % len(pictures.PLACES)]
        asked = [pictures.random_caption(random, name) for name in names]
        drawn = [artwork.draw(number, place, pictures.COLOURS[colour]) for number, (_, colour) in enumerate(asked)]
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).bfloat16() / 127.5 - 1
        with torch.no_grad():
            made = torch.cat([vae.encode(batch).latent_dist.mean.half() for batch in pixels.split(32)])
        state["latents"] = torch.cat([state["latents"], made])
        state["tokens"] = torch.cat([state["tokens"], tokenize([caption for caption, _ in asked])])
        done += 1
        if clock.time_to_save() or done % 20 == 0:
            print(f"latents {len(state['latents'])} of {per_round * args.rounds}", flush=True)
            checkpoints.save(**state)
    checkpoints.save(**state)


def scaled_latents(stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The latents with a mean of 0 and a deviation of 1 in each channel, and what was taken off and divided by."""
    sample = stored[:: max(1, len(stored) // 5000)].float()
    mean, deviation = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True)
    return (stored - mean.half()) / deviation.half(), mean.flatten(), deviation.flatten()


def train_unet(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """v-prediction (Salimans & Ho 2022), each error weighted by min(SNR, 5) of the picture (Hang et al. 2023),
    but by 0.2 at least: the first steps of a picture decide what it becomes.

    The average of the weights is kept.
    """
    data = torch.load(args.work / "latents.pt", weights_only=True)
    all_latents, _, _ = scaled_latents(data["latents"])
    known, all_tokens = known_words(data["tokens"])
    unet, text = build_unet(), build_text_encoder(len(known) + 1)
    if args.go_on_from:
        take_over(args.go_on_from, unet, text, known)
    averaged = copy.deepcopy(torch.nn.ModuleList([unet, text])).requires_grad_(False)
    trained = [*unet.parameters(), *text.parameters()]
    optimizer = Muon([*unet.named_parameters(), *text.named_parameters()], lr=args.unet_rate, weight_decay=1e-2)
    checkpoints, clock, step = Checkpoints(args.work / "unet.pt"), Clock(args.unet_minutes, 0.0), 0
    if state := checkpoints.load():
        for key, part in (("unet", unet), ("text", text), ("averaged", averaged), ("optimizer", optimizer)):
            part.load_state_dict(state[key])
        clock, step = Clock(args.unet_minutes, state["spent"]), state["step"]

    def save() -> None:
        checkpoints.save(
            unet=unet.state_dict(), text=text.state_dict(), averaged=averaged.state_dict(),
            optimizer=optimizer.state_dict(), spent=clock.spent, step=step,
        )  # fmt: skip

    kept = build_schedule().alphas_cumprod
    snr = kept / (1 - kept)
    weights = snr.clamp(0.2, 5) / (snr + 1)  # of an error in v, which is 1 + 1/SNR times one in the picture
    empty = torch.searchsorted(known, tokenize([""])[0])
    random = torch.Generator().manual_seed(step)
    average, first = torch.zeros(()), step
    for done in clock.steps():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.unet_rate, done)
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
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), trained, max(1e-3, 9 / (step + 10)))
        average = average.lerp(loss.detach(), max(0.01, 1 / (step - first)))
        if step % 100 == 0:
            print(f"unet {step} {clock.spent:.1f}min loss {average:.4f}", flush=True)
        if clock.time_to_save():
            save()
    save()


def spread_times(random: torch.Generator) -> torch.Tensor:
    """One time step of each of the batch's equal parts of the schedule: a steadier loss than times by chance."""
    return ((torch.arange(BATCH) + torch.rand(BATCH, generator=random)) * 1000 / BATCH).long().clamp(max=999)


def take_over(model: Path, unet: UNet2DConditionModel, text: CLIPTextModel, known: torch.Tensor) -> None:
    """Starts from the weights of another model, wherever the shapes agree."""
    shipped = CLIPTextModel.from_pretrained(model / "text_encoder").float().state_dict()
    word = next(name for name in shipped if "token_embedding" in name)
    strange = next(row for row in range(WORDS) if row not in set(known.tolist()))
    shipped[word] = shipped[word][[*known.tolist(), strange]]
    for part, weights in (
        (unet, UNet2DConditionModel.from_pretrained(model / "unet").float().state_dict()),
        (text, shipped),
    ):
        own = part.state_dict()
        part.load_state_dict({**own, **{k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}})


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


@torch.no_grad()
def absorb(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Moves what `scaled_latents` does into the convolutions around the latents, since diffusers knows one factor."""
    after, before = vae.quant_conv, vae.post_quant_conv
    before.bias += before.weight[:, :, 0, 0] @ mean
    before.weight *= deviation[None, :, None, None]
    channels = len(mean)  # the first half of what the encoder gives is the mean, the other half the log of the variance
    after.weight[:channels] /= deviation[:, None, None, None]
    after.bias[:channels] = (after.bias[:channels] - mean) / deviation
    after.bias[channels:] -= 2 * deviation.log()
    vae.register_to_config(scaling_factor=1.0)


def export(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """Writes the diffusers folder, float16, without anything that changes from one export to the next."""
    data = torch.load(args.work / "latents.pt", weights_only=True)
    vae = load_vae(args.work)
    if decoder := Checkpoints(args.work / "decoder.pt").load():
        vae.load_state_dict(decoder["vae"])
    _, mean, deviation = scaled_latents(data["latents"])
    absorb(vae, mean, deviation)
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
        "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading",
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


STAGES = {"vae": train_vae, "latents": make_latents, "unet": train_unet, "decoder": train_decoder, "export": export}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--artwork", type=Path, required=True, help="Twemoji's folder of SVG files")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "runner/models/emoji")
    parser.add_argument("--vae-minutes", type=float, default=70)
    parser.add_argument("--vae-rate", type=float, default=2e-3)
    parser.add_argument(
        "--go-on-from", type=Path, help="a diffusers folder, say an earlier export, whose weights are started from"
    )
    parser.add_argument("--rounds", type=int, default=3, help="pictures of each name at each place, for the UNet")
    parser.add_argument("--unet-minutes", type=float, default=90)
    parser.add_argument("--unet-rate", type=float, default=2e-3)
    parser.add_argument("--decoder-minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    artwork, names = pictures.Artwork(args.artwork), pictures.names()
    for stage in args.stages:
        STAGES[stage](args, artwork, names)


if __name__ == "__main__":
    main()
