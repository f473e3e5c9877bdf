"""Writes a model of a family's architecture and full size with random weights.

Its pictures are noise; speed and memory are those of the real one, so that they can be measured without a download.
The weights are the modules' own initial ones, with which no layer overflows in half precision. Nothing else is made
here, and other sizes aren't.

    save("sd15", Path("bench-sd15"))  # a diffusers folder of 2.1 GB, float16
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

VOCABULARY = 49408
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def save(kind: str, folder: Path, *, seed: int = 0) -> None:
    """Writes the model as a diffusers folder, whole or not at all; one that is there already stays."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "scheduler").mkdir(parents=True)
    (partial / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER), encoding="utf-8")
    torch.manual_seed(seed)
    for name, make in PARTS[kind].items():
        make().half().save_pretrained(partial / name)
    for name, pad in PADS[kind].items():
        (partial / name).mkdir()
        (partial / name / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}), encoding="utf-8")
    partial.rename(folder)


def _text_encoder(kind: Any = CLIPTextModel, width: int = 768, layers: int = 12, act: str = "quick_gelu") -> Any:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=act,
        eos_token_id=VOCABULARY - 1,
    )
    return kind(config)


def _second_text_encoder() -> Any:
    return _text_encoder(CLIPTextModelWithProjection, 1280, 32, "gelu")


def _unet() -> Any:
    """diffusers' own defaults are Stable Diffusion v1's, but for the width of the text's embedding."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _large_unet() -> Any:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _autoencoder(scaling: float = 0.18215) -> Any:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
        scaling_factor=scaling,
    )


PARTS: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "sd15": {"text_encoder": _text_encoder, "unet": _unet, "vae": _autoencoder},
    "sdxl": {
        "text_encoder": _text_encoder,
        "text_encoder_2": _second_text_encoder,
        "unet": _large_unet,
        "vae": lambda: _autoencoder(0.13025),
    },
}
PADS: Mapping[str, Mapping[str, str]] = {
    "sd15": {},
    "sdxl": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
}
