"""A Stable Diffusion XL model of a few thousand weights, as a diffusers folder and as a single file by sgm's names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tiny
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from single_file import _unet_name, _vae_name
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

WIDTH, WIDTH_2, POOLED = 64, 128, 128


def components(seed=0, *, depths=(1, 1, 2), **changes):
    """Two text encoders, a UNet of three levels of which the first one attends to nothing, and an autoencoder."""
    torch.manual_seed(seed)
    text = {"vocab_size": tiny.VOCABULARY, "num_hidden_layers": 3, "eos_token_id": tiny.VOCABULARY - 1}
    first = CLIPTextModel(
        CLIPTextConfig(
            **text, hidden_size=WIDTH, intermediate_size=96, num_attention_heads=1, hidden_act="quick_gelu",
            projection_dim=WIDTH,
        )
    )  # fmt: skip
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            **text, hidden_size=WIDTH_2, intermediate_size=96, num_attention_heads=2, hidden_act="gelu",
            projection_dim=POOLED,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        **{
            "sample_size": 16,
            "block_out_channels": (32, 64, 128),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH + WIDTH_2,
            "attention_head_dim": [1, 1, 2],
            "use_linear_projection": True,
            "transformer_layers_per_block": list(depths),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": POOLED + 6 * 8,
        }
        | changes
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025,
    )
    return first.eval(), second.eval(), unet.eval(), vae.eval()


def save_folder(folder: Path, parts=None, *, index=None, dtype=torch.float32, **scheduler) -> Path:
    """A diffusers folder, with the tokenizers' settings but without a vocabulary: the shipped one serves."""
    names = "text_encoder", "text_encoder_2", "unet", "vae"
    for name, part in zip(names, parts or components(), strict=True):
        part.to(dtype).save_pretrained(folder / name)
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        (folder / name).mkdir()
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(tiny.SCHEDULER | scheduler))
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def to_sgm(parts) -> dict[str, torch.Tensor]:
    """The weights by the names of Stability's generative-models."""
    first, second, unet, vae = parts
    layers = unet.config.layers_per_block
    found = {}
    for name, tensor in unet.state_dict().items():
        name = name.replace("add_embedding.linear_1", "label_emb.0.0").replace(
            "add_embedding.linear_2", "label_emb.0.2"
        )
        found[f"model.diffusion_model.{_unet_name(name, layers)}"] = tensor
    for name, tensor in vae.state_dict().items():
        found[f"first_stage_model.{_vae_name(name, len(vae.config.block_out_channels))}"] = (
            tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        )
    found |= {f"conditioner.embedders.0.transformer.text_model.{n}": t for n, t in first.state_dict().items()}
    found["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    found["denoiser.sigmas"] = torch.zeros(1000)
    return found | {f"conditioner.embedders.1.model.{n}": t for n, t in _to_open_clip(second).items()}


def _to_open_clip(text) -> dict[str, torch.Tensor]:
    states, found = text.state_dict(), {"logit_scale": torch.zeros(())}
    for name, tensor in states.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif match := re.match(r"(encoder\.layers\.\d+\.self_attn\.)([qkv])_proj\.(\w+)", name):
            if match[2] == "q":
                owner = match[1].replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
                thirds = [states[f"text_model.{match[1]}{key}_proj.{match[3]}"] for key in "qkv"]
                found[f"{owner}in_proj_{match[3]}"] = torch.cat(thirds)
        else:
            for old, new in (
                ("embeddings.position_embedding.weight", "positional_embedding"),
                ("embeddings.token_embedding", "token_embedding"), ("final_layer_norm", "ln_final"),
                ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
            ):  # fmt: skip
                name = name.replace(old, new)
            found[name] = tensor
    return found


def save_single_file(file: Path, parts=None, **more) -> Path:
    """A single file; `more` are tensors that mark what it is."""
    table = {name: tensor.contiguous() for name, tensor in (to_sgm(parts or components()) | more).items()}
    save_file(table, file)
    return file
