"""The embedded model's parts, their noise schedule, and what lies between them and what is trained.

What is trained has few words and latents of unit deviation. What ships has CLIP's whole vocabulary and the one scaling
factor that diffusers knows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = 49408
TOKENIZER = Path(__file__).parents[2] / "runner/models/emoji/tokenizer"


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


def tokenize(captions: list[str]) -> torch.Tensor:
    """int32 [N, 77], padded with the end token as Stable Diffusion does."""
    return torch.tensor([_tokens(caption) for caption in captions], dtype=torch.int32)


@cache
def _tokens(caption: str) -> list[int]:
    return _tokenizer()(caption, padding="max_length", max_length=77, truncation=True).input_ids


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def known_words(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that captions have, in order, and the captions by their places in that list.

    All other tokens are trained as one, which comes after them.
    """
    known, places = tokens.unique(return_inverse=True)
    return known, places


def whole_vocabulary(known: torch.Tensor, trained: dict[str, torch.Tensor]) -> CLIPTextModel:
    """The text encoder with an embedding for each of CLIP's tokens."""
    text, name = build_text_encoder(), "embeddings.token_embedding.weight"
    words = trained[name][-1:].repeat(WORDS, 1)
    words[known.long()] = trained[name][:-1]
    text.load_state_dict({**trained, name: words})
    return text


def scaled_latents(stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The latents with a mean of 0 and a deviation of 1 in each channel, and what was taken off and divided by."""
    sample = stored[:: max(1, len(stored) // 5000)].float()
    mean, deviation = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True)
    return (stored - mean.half()) / deviation.half(), mean.flatten(), deviation.flatten()


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
