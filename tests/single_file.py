"""Small Stable Diffusion models, v1 and v2, as diffusers folders and by CompVis' names: the way back, written apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import tiny
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

UNET_SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_SD21 = UNET_SD15 | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE_SD = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT_SD15 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT_SD21 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu",
}  # fmt: skip
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
SMALL_UNET = {
    "block_out_channels": (64, 64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
}
SMALL_VAE = VAE_SD | {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}

Components = tuple[CLIPTextModel, UNet2DConditionModel, AutoencoderKL]


def small(version: int, seed: int = 0) -> Components:
    """A small model of version 1 or 2."""
    torch.manual_seed(seed)
    text = SMALL_TEXT | {"hidden_act": "gelu" if version == 2 else "quick_gelu"}
    heads = {"attention_head_dim": [1, 1, 2], "use_linear_projection": True} if version == 2 else {}
    return make(text, SMALL_UNET | {"attention_head_dim": 8} | heads, SMALL_VAE)


def full(version: int) -> Components:
    """The real thing, without memory."""
    with torch.device("meta"):
        return make(*((TEXT_SD21, UNET_SD21) if version == 2 else (TEXT_SD15, UNET_SD15)), VAE_SD)


def make(text: Mapping, unet: Mapping, vae: Mapping) -> Components:
    made = CLIPTextModel(CLIPTextConfig(vocab_size=tiny.VOCABULARY, **text)), UNet2DConditionModel(**unet)
    return (*(part.eval() for part in made), AutoencoderKL(**vae).eval())


def save_folder(folder: Path, parts: Components, dtype: torch.dtype = torch.float32, **scheduler: object) -> Path:
    """A diffusers folder."""
    for name, part in zip(("text_encoder", "unet", "vae"), parts, strict=True):
        part.to(dtype).save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(tiny.SCHEDULER | scheduler))
    return folder


def to_compvis(parts: Components) -> dict[str, Tensor]:
    """The weights by CompVis' names, with the leftovers of training that such files have."""
    text, unet, vae = parts
    layers = unet.config.layers_per_block
    found = {}
    for name, tensor in unet.state_dict().items():
        found[f"model.diffusion_model.{_unet_name(name, layers)}"] = tensor
    for name, tensor in vae.state_dict().items():
        found[f"first_stage_model.{_vae_name(name, len(vae.config.block_out_channels))}"] = (
            tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        )
    if text.config.hidden_act == "gelu":
        found |= _to_open_clip(text)
    else:
        found |= {f"cond_stage_model.transformer.text_model.{n}": t for n, t in text.state_dict().items()}
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    schedule = ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "log_one_minus_alphas_cumprod", "logvar")
    found |= {name: torch.zeros(1000) for name in schedule}
    return found | {"model_ema.decay": torch.zeros(()), "model_ema.diffusion_modelout2bias": torch.zeros(4)}


def _unet_name(name: str, layers: int) -> str:
    for pattern, replacement in (
        (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
        (r"^mid_block\.resnets\.0", "middle_block.0"), (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^mid_block\.resnets\.1", "middle_block.2"),
    ):  # fmt: skip
        name = re.sub(pattern, replacement, name)
    if match := re.match(r"down_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        level, kind, layer, rest = match.groups()
        place = 1 + int(level) * (layers + 1) + int(layer)
        if kind == "downsamplers":
            return f"input_blocks.{place + layers}.0.op.{rest.removeprefix('conv.')}"
        name = f"input_blocks.{place}.{int(kind == 'attentions')}.{rest}"
    if match := re.match(r"up_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        level, kind, layer, rest = match.groups()
        place = int(level) * (layers + 1) + int(layer)
        if kind == "upsamplers":
            # An upsampler stands behind the attention of the level's last layer, where there is one.
            return f"output_blocks.{place + layers}.{1 if level == '0' else 2}.{rest}"
        name = f"output_blocks.{place}.{int(kind == 'attentions')}.{rest}"
    for new, old in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
                     ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
                     ("conv_shortcut", "skip_connection")):  # fmt: skip
        if "transformer_blocks" not in name:
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _vae_name(name: str, levels: int) -> str:
    for new, old in (("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
                     ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"), ("conv_norm_out", "norm_out"),
                     ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
                     ("mid_block.attentions.0.to_", "mid.attn_1."), ("conv_shortcut", "nin_shortcut"),
                     ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block"),
                     ("down_blocks", "down")):  # fmt: skip
        name = name.replace(new, old)
    return re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)


def _to_open_clip(text: CLIPTextModel) -> dict[str, Tensor]:
    state = text.state_dict()
    found = {}
    for name, tensor in state.items():
        for new, old in (("embeddings.position_embedding.weight", "positional_embedding"),
                         ("embeddings.token_embedding", "token_embedding"), ("final_layer_norm", "ln_final"),
                         ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("fc1", "c_fc"),
                         ("fc2", "c_proj"), ("self_attn", "attn")):  # fmt: skip
            name = name.replace(new, old)
        if match := re.match(r"(.*)\.q_proj\.(weight|bias)", name):
            owner = match[1].replace("transformer.resblocks", "encoder.layers").replace("attn", "self_attn")
            parts = [state[f"{owner}.{key}_proj.{match[2]}"] for key in "qkv"]
            name, tensor = f"{match[1]}.in_proj_{match[2]}", torch.cat(parts)
        elif re.search(r"\.[kv]_proj\.", name):
            continue
        found[f"cond_stage_model.model.{name}"] = tensor
    width = text.config.hidden_size
    unused = {
        "logit_scale": torch.zeros(()),
        "text_projection": torch.zeros(width, width),
        "visual.proj": torch.zeros(4),
    }
    return found | {f"cond_stage_model.model.{name}": tensor for name, tensor in unused.items()}


def with_last_layer(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text encoder of 23 layers with the 24th, which isn't used, as the released files have it."""
    last = {name: tensor for name, tensor in found.items() if ".resblocks.22." in name}
    return found | {name.replace(".22.", ".23."): torch.ones_like(tensor) for name, tensor in last.items()}
