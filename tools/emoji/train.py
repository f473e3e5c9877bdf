"""Trains the embedded model: `python train.py --artwork SVG_FOLDER --work FOLDER STAGE...` (see README.md).

Stages, in order: `vae`, `latents`, `unet`, `decoder`, `export`. `decoder` learns from the UNet as it is by then.
Each can be stopped at any time and goes on from its last checkpoint in the work folder when it is called again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pictures
import torch
from autoencoder import load_vae, make_latents, train_vae
from decoder import load_decoder, train_decoder
from networks import absorb, known_words, scaled_latents, whole_vocabulary
from progress import load
from unet import load_unet, train_unet


def export(args: argparse.Namespace, artwork: pictures.Artwork, names: list[str]) -> None:
    """Writes the diffusers folder, float16, without anything that changes from one export to the next."""
    data = load(args.work / "latents.pt")
    vae = load_vae(args.work)
    if (args.work / "decoder.pt").exists():
        load_decoder(args.work, vae)
    _, mean, deviation = scaled_latents(data["latents"])
    absorb(vae, mean, deviation)
    known, _ = known_words(data["tokens"])
    unet, text = load_unet(args.work, known)
    for name, part in (("vae", vae), ("unet", unet), ("text_encoder", whole_vocabulary(known, text.state_dict()))):
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
    parser.add_argument("--unet-minutes", type=float, default=200)
    parser.add_argument("--unet-rate", type=float, default=1e-3)
    parser.add_argument("--decoder-minutes", type=float, default=70)
    parser.add_argument("--decoder-rate", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)  # for weights that start from nothing
    args.work.mkdir(parents=True, exist_ok=True)
    artwork, names = pictures.Artwork(args.artwork), pictures.names()
    for stage in args.stages:
        STAGES[stage](args, artwork, names)


if __name__ == "__main__":
    main()
