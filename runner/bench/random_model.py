"""Writes a model of Stable Diffusion v1's architecture and full size with random weights.

Its pictures are noise; speed and memory are those of the real one, so that they can be measured without a download.
The weights are the modules' own initial ones, with which no layer overflows in half precision. Nothing else is made
here, and other sizes aren't.

    save_sd15(Path("bench-sd15"))  # a diffusers folder of 2.1 GB, float16
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SCHEDULER = Path(__file__).parents[1] / "models" / "emoji" / "scheduler"  # has Stable Diffusion v1's noise schedule
VOCABULARY = 49408


def save_sd15(folder: Path, *, seed: int = 0) -> None:
    """Writes the model as a diffusers folder, whole or not at all; one that is there already stays."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(SCHEDULER, partial / "scheduler")
    torch.manual_seed(seed)
    for name, make in PARTS.items():
        make().half().save_pretrained(partial / name)
    partial.rename(folder)


def _text_encoder() -> Any:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        hidden_act="quick_gelu",
        eos_token_id=VOCABULARY - 1,
    )
    return CLIPTextModel(config)


def _unet() -> Any:
    """diffusers' own defaults are Stable Diffusion v1's, but for the width of the text's embedding."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _autoencoder() -> Any:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
    )


PARTS: dict[str, Callable[[], Any]] = {"text_encoder": _text_encoder, "unet": _unet, "vae": _autoencoder}
